"""``phi3-serve fetch``: the files of a variant or an adapter in a directory, at one commit, each equal to its hash.

The directory is for ``source`` of a model or of an adapter. The file ``fetched.json`` in it has the sizes and the
hashes. With it, the directory or a copy of it can be compared without the Hub.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._headers import build_hf_headers
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from phi3_serve.catalogue import DOWNLOADED, VARIANTS, variant
from phi3_serve.engine.adapters import reader
from phi3_serve.engine.load_errors import fetch_error, resource_error
from phi3_serve.errors import (
    AlreadyFetching,
    CheckpointError,
    CheckpointIncomplete,
    Phi3ServeError,
    StorageFull,
    did_you_mean,
)
from phi3_serve.observability.progress import Progress, counting_bar, human_bytes

MANIFEST = "fetched.json"
PARTS = ".unfinished"  # a directory; each file in it is named after the hash of the whole
LOCK = ".fetch.lock"  # stays in the directory: a process that waits for it may have it open
ADAPTERS = "adapters"  # the directory of the directories of adapters
DOWNLOADS_AT_ONCE = 4
_BYTES_AT_ONCE = 2**20
_ADAPTER = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@([0-9a-f]{40})", re.ASCII)


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


class Manifest(BaseModel):
    """What this module reads of ``fetched.json``."""

    revision: str
    files: list[HubFile]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be in a directory: some files of a repository at a commit."""

    name: str  # the path of the directory
    source: str  # Hub repository id
    revision: str  # a commit, so that the files cannot change
    patterns: Sequence[str]  # of paths in the repository
    required: Sequence[str] = ()  # paths


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was wanted, with all files complete and right."""

    wanted: Wanted
    directory: Path
    files: Sequence[HubFile]
    downloaded: Sequence[str]  # paths of the files that were not there, or not right

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The result for scripts."""
        return {
            "name": self.wanted.name,
            "source": self.wanted.source,
            "revision": self.wanted.revision,
            "directory": str(self.directory),
            "bytes": self.total_bytes,
            "downloaded": list(self.downloaded),
            "files": [asdict(file) for file in self.files],
        }


def variants_named(names: Iterable[str]) -> list[Wanted]:
    """The weights of the catalogue's entries of ``names``.

    Raises:
        Phi3ServeError: a name is not in the catalogue, or its weights are part of the package.
    """
    found = []
    for name in names:
        if (one := variant(name)) is None:
            known = [entry.name for entry in VARIANTS]
            hint = did_you_mean(name, known, f"; it must be one of {', '.join(known)}")
            raise Phi3ServeError(f"MODEL: `{name}` is not in the catalogue{hint}")
        if one.revision is None:
            raise Phi3ServeError(f"MODEL: {one.name} is part of the package; there is nothing to download")
        found.append(Wanted(one.name, one.source, one.revision, DOWNLOADED))
    return found


def adapters_named(names: Iterable[str]) -> list[Wanted]:
    """Adapters of the Hub, each named as REPOSITORY@COMMIT.

    Raises:
        Phi3ServeError: a name has another form.
    """
    found = []
    for name in names:
        if (parts := _ADAPTER.fullmatch(name)) is None:
            form = "it must be OWNER/REPOSITORY@COMMIT, with the 40 hexadecimal digits of the commit"
            raise Phi3ServeError(f"--adapter: `{name}` names no adapter; {form}")
        source, revision = parts.groups()
        directory = f"{ADAPTERS}/{source.replace('/', '--')}"
        found.append(Wanted(directory, source, revision, reader.FILES, required=reader.FILES))
    return found


def fetch(wanted: Wanted, to: Path) -> Fetched:
    """Download what the directory of ``wanted`` in ``to`` lacks, and compare every file with its hash.

    Unfinished files are continued. Files that are right are kept. If nothing lacks, the Hub is not asked.

    Raises:
        AlreadyFetching: another process downloads into the directory.
        CheckpointError: the Hub does not give the files, the disk is full, or a file is not right after the download.
    """
    directory = to.expanduser().absolute() / wanted.name
    with _locked(directory):
        files = _files_of(wanted, directory)
        lacking = [file for file, _ in _problems(wanted, files, directory)]
        if lacking:
            _remove_other_parts(directory, lacking)
            _check_room(directory, lacking)
            _download(wanted, directory, lacking)
            if problems := [problem for _, problem in _problems(wanted, lacking, directory)]:
                text = "; ".join(problems)
                raise CheckpointIncomplete(f"{wanted.name}: {text}. The same command downloads it again.")
        fetched = Fetched(wanted, directory, files, [file.path for file in lacking])
        _write_manifest(fetched)
    return fetched


def verify(wanted: Wanted, to: Path) -> Fetched:
    """Compare the files of ``wanted`` in ``to`` with the hashes in its ``fetched.json``, without the Hub.

    Raises:
        CheckpointError: a file is missing or not right, or the directory has another revision.
    """
    directory = to.expanduser().absolute() / wanted.name
    manifest = _manifest_in(directory)
    if manifest.revision != wanted.revision:
        raise CheckpointError(f"{directory}: holds revision {manifest.revision}, and {wanted.revision} is wanted")
    if problems := [problem for _, problem in _problems(wanted, manifest.files, directory)]:
        raise CheckpointIncomplete(f"{wanted.name}: {'; '.join(problems)}")
    return Fetched(wanted, directory, manifest.files, [])


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Make ``directory``, and let no other process download into it. The lock ends with the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("ab")
    except OSError as error:
        raise _cannot_write(directory, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyFetching(f"{directory}: another fetch is running; wait for its end, or stop it") from None
        except OSError as error:  # a file system without locks
            raise CheckpointIncomplete(f"{directory / LOCK}: cannot be locked: {error.strerror}") from None
        yield


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return resource_error(str(path), error) or CheckpointIncomplete(f"{path}: cannot be written: {error.strerror}")


def _files_of(wanted: Wanted, directory: Path) -> list[HubFile]:
    """The list in ``fetched.json`` if it is of this revision; then a complete directory needs no Hub."""
    try:
        manifest = _manifest_in(directory)
    except CheckpointIncomplete:
        return _files_on_the_hub(wanted)
    return manifest.files if manifest.revision == wanted.revision else _files_on_the_hub(wanted)


def _files_on_the_hub(wanted: Wanted) -> list[HubFile]:
    try:
        entries = list(HfApi().list_repo_tree(wanted.source, revision=wanted.revision, recursive=True))
    except Exception as error:  # of the Hub or of the network
        raise fetch_error(wanted.source, wanted.revision, error) from error
    files = [_hub_file(entry) for entry in entries if isinstance(entry, RepoFile)]
    chosen = [file for file in files if any(fnmatch(file.path, pattern) for pattern in wanted.patterns)]
    if lacking := [path for path in wanted.required if path not in {file.path for file in chosen}]:
        raise CheckpointError(f"{wanted.source}: there is no file {lacking[0]} at revision {wanted.revision}")
    if not any(file.path.endswith(".safetensors") for file in chosen):
        raise CheckpointError(f"{wanted.source}: there are no safetensors files at revision {wanted.revision}")
    return chosen


def _hub_file(entry: RepoFile) -> HubFile:
    if entry.lfs is not None:
        return HubFile(entry.path, entry.lfs.size, "sha256", entry.lfs.sha256)
    return HubFile(entry.path, entry.size, "git-sha1", entry.blob_id)


def _problems(wanted: Wanted, files: Sequence[HubFile], directory: Path) -> list[tuple[HubFile, str]]:
    """The files that are not right in ``directory``, each with the reason."""
    present = sum(file.size for file in files if (directory / file.path).is_file())
    progress = Progress(f"{wanted.name}: comparing with the hashes", present)
    found = [(file, problem) for file in files if (problem := file.problem_in(directory, progress)) is not None]
    if present:
        progress.finish()
    return found


def _check_room(directory: Path, lacking: Sequence[HubFile]) -> None:
    """StorageFull before the download, not hours later."""
    parts = [part for file in lacking if (part := _part(directory, file)).is_file()]
    needed = sum(file.size for file in lacking) - sum(part.stat().st_size for part in parts)
    if (free := shutil.disk_usage(directory).free) < needed:
        raise StorageFull(f"{directory}: {human_bytes(needed)} are needed, and {human_bytes(free)} are free")


def _remove_other_parts(directory: Path, lacking: Sequence[HubFile]) -> None:
    """Remove unfinished files that nothing continues, such as those of another revision."""
    continued = {file.hash for file in lacking}
    try:
        for part in (directory / PARTS).glob("*"):
            if part.name not in continued:
                part.unlink()
    except OSError as error:
        raise _cannot_write(directory / PARTS, error) from None


def _download(wanted: Wanted, directory: Path, files: Sequence[HubFile]) -> None:
    """Download ``files``. ``snapshot_download`` of the library begins each unfinished file anew, so it is not used."""
    progress = Progress(f"{wanted.name}: downloading {wanted.source}", sum(file.size for file in files))
    bar = counting_bar(progress)
    try:
        (directory / PARTS).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            downloads = [pool.submit(_download_file, wanted, directory, file, bar) for file in files]
        for download in downloads:
            download.result()
        (directory / PARTS).rmdir()
    except Exception as error:  # of the Hub, of the network or of the disk
        raise fetch_error(wanted.source, wanted.revision, error, into=str(directory)) from error
    progress.finish()


def _download_file(wanted: Wanted, directory: Path, file: HubFile, bar: type[Any]) -> None:
    part, path = _part(directory, file), directory / file.path
    with part.open("ab") as opened:
        if opened.tell() > file.size:
            opened.seek(0)
            opened.truncate()
        http_get(
            hf_hub_url(wanted.source, file.path, revision=wanted.revision),
            opened,
            resume_size=opened.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
            tqdm_class=bar,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)


def _part(directory: Path, file: HubFile) -> Path:
    return directory / PARTS / file.hash


def _manifest_in(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise CheckpointIncomplete(f"{path}: {error.strerror}; `phi3-serve fetch` writes this file") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))  # empty if the whole is wrong
        problem = f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        raise CheckpointIncomplete(f"{path}: {problem}; `phi3-serve fetch` writes this file") from None
    if not any(file.path.endswith(".safetensors") for file in manifest.files):
        raise CheckpointIncomplete(f"{path}: files: none is a .safetensors file; `phi3-serve fetch` writes this file")
    return manifest


def _write_manifest(fetched: Fetched) -> None:
    path = fetched.directory / MANIFEST
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(fetched.as_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise _cannot_write(path, error) from None
