"""A file of a Hub repository, and whether a copy of it is right."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from huggingface_hub.hf_api import RepoFile
from pydantic import AfterValidator, Field

from phi3_serve.observability.progress import Progress

_BYTES_AT_ONCE = 2**20


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise ValueError(f"must be a path in the repository, and is `{path}`")
    return path


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. Its hash is that of the content, or for small files that of the git object."""

    path: Annotated[str, AfterValidator(_inside)]  # in the repository
    size: Annotated[int, Field(ge=0)]  # bytes
    algorithm: Literal["sha256", "git-sha1"]  # git-sha1: SHA-1 over "blob SIZE", a zero byte and the content
    hash: Annotated[str, Field(pattern="^[0-9a-f]{40,64}$")]  # hexadecimal

    def problem_in(self, directory: Path, progress: Progress) -> str | None:
        """What is wrong with this file in ``directory``; None if it has the right content."""
        path = directory / self.path
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != self.size:
            return f"{path} has {size} bytes and should have {self.size}"
        try:
            found = self._hash_of(path, progress)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        return None if found == self.hash else f"{path} has the {self.algorithm} {found} and should have {self.hash}"

    def _hash_of(self, path: Path, progress: Progress) -> str:
        if self.algorithm == "sha256":
            hasher = hashlib.sha256()
        else:
            hasher = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)  # as git names the object
        with path.open("rb") as opened:
            while piece := opened.read(_BYTES_AT_ONCE):
                hasher.update(piece)
                progress.advance(len(piece))
        return hasher.hexdigest()


def hub_file(entry: RepoFile) -> HubFile:
    """``entry`` of the Hub's list of files."""
    if entry.lfs is not None:
        return HubFile(entry.path, entry.lfs.size, "sha256", entry.lfs.sha256)
    return HubFile(entry.path, entry.size, "git-sha1", entry.blob_id)
