"""Files of one owner in a directory: the content, and a JSON file that says what it is.

A file is there once its JSON file is. So the content is written first and removed last, and a process that ends between
the two leaves only what ``sweep`` removes.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from phi3_serve.batch import json_file
from phi3_serve.batch.object_id import FILE_ID
from phi3_serve.batch.private_directory import make_private

_CONTENT, _ABOUT, _PART = ".jsonl", ".json", ".part"
_OLDEST_PART_S = 86_400.0  # an upload that got nothing for a day has ended with its process


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What a file is."""

    id: str
    filename: str  # as the client calls it
    purpose: str
    num_bytes: int
    created_at: int  # seconds since 1970
    expires_at: int | None = None  # seconds since 1970

    @property
    def is_expired(self) -> bool:
        """Whether it counts as deleted."""
        return self.expires_at is not None and time.time() >= self.expires_at


class NewFile:
    """A file that is being written."""

    def __init__(self, id: str, file: BinaryIO) -> None:
        self.id = id
        self.num_bytes = 0
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``."""
        self._file.write(data)
        self.num_bytes += len(data)


class FileStore:
    """The files in ``directory``, which is made when the first file comes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def new(self) -> Iterator[NewFile]:
        """A new file, which is lost unless ``keep`` is called in the context.

        Raises:
            OSError: it cannot be written.
        """
        self._make()
        id = FILE_ID.new()
        part = self._path(id, _PART)
        try:
            with part.open("xb") as file:
                yield NewFile(id, file)
        finally:
            part.unlink(missing_ok=True)

    def keep(self, new: NewFile, *, filename: str, purpose: str, expires_after_s: int | None) -> StoredFile:
        """Let ``new`` be a file of the store."""
        new._file.flush()
        part = self._path(new.id, _PART)
        return self.adopt(new.id, part, filename=filename, purpose=purpose, expires_after_s=expires_after_s)

    def adopt(self, id: str, path: Path, *, filename: str, purpose: str, expires_after_s: int | None) -> StoredFile:
        """Move the file at ``path``, on the same disk, into the store. A second call finishes what the first began.

        Raises:
            OSError: neither call found it, or it cannot be moved.
        """
        self._make()
        content = self.content(id)
        if path.exists() or not content.exists():
            _write_to_disk(path)
            path.replace(content)
        now = int(time.time())
        expires_at = None if expires_after_s is None else now + expires_after_s
        file = StoredFile(id, filename, purpose, content.stat().st_size, now, expires_at)
        json_file.write(self._path(id, _ABOUT), asdict(file))
        return file

    def get(self, id: str) -> StoredFile | None:
        """The file ``id``, if it is there."""
        file = self._about(id)
        return None if file is None or file.is_expired else file

    def content(self, id: str) -> Path:
        """Where the content of the file ``id`` is."""
        return self._path(id, _CONTENT)

    def ids(self) -> Sequence[str]:
        """The ids of all files, also of expired ones, in any order."""
        return [path.stem for path in self._directory.glob(f"file-*{_ABOUT}")]

    def delete(self, id: str) -> None:
        """Remove the file ``id``, if it is there."""
        self._path(id, _ABOUT).unlink(missing_ok=True)
        self.content(id).unlink(missing_ok=True)

    def sweep(self, is_in_use: Callable[[str], bool]) -> None:
        """Remove expired files that are not in use, and what ended processes have left."""
        for id in self.ids():
            if (file := self._about(id)) is not None and file.is_expired and not is_in_use(id):
                self.delete(id)
        for path in self._directory.glob(f"file-*{_CONTENT}"):
            if not self._path(path.stem, _ABOUT).exists() and _is_old(path):
                path.unlink(missing_ok=True)
        for pattern in (f"file-*{_PART}", ".file-*"):
            for path in self._directory.glob(pattern):
                if _is_old(path):
                    path.unlink(missing_ok=True)

    def _make(self) -> None:
        make_private(self._directory)

    def _about(self, id: str) -> StoredFile | None:
        about = json_file.read(self._path(id, _ABOUT)) if FILE_ID.matches(id) else None
        return None if about is None else json_file.as_object(StoredFile, about)

    def _path(self, id: str, suffix: str) -> Path:
        return self._directory / f"{id}{suffix}"


def _write_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > _OLDEST_PART_S
    except FileNotFoundError:
        return False
