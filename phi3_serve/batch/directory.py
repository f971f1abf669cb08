"""The directory of all files and batches. It outlives the server, and several servers may share it.

Each owner has a directory in it: ``key-NAME`` for the API key NAME, ``no-key`` where the server asks for none. So no
owner reaches the files of another one. The process that runs the batches has the lock of ``worker.lock``.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phi3_serve.batch.batch_store import BatchStore
from phi3_serve.batch.file_store import FileStore
from phi3_serve.batch.private_directory import make_private

_KEY, _NO_KEY = "key-", "no-key"
_LOCK = "worker.lock"


@dataclass(frozen=True, slots=True)
class OwnStores:
    """What one owner has."""

    files: FileStore
    batches: BatchStore


class BatchDirectory:
    """The directory at ``root``, which is made when it is first used."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, owner: str | None) -> OwnStores:
        """What the API key named ``owner`` has made, or what was made without a key."""
        own = self._root / (_NO_KEY if owner is None else f"{_KEY}{owner}")
        return OwnStores(FileStore(own / "files"), BatchStore(own / "batches"))

    def owners(self) -> Sequence[str | None]:
        """Everyone who has made something."""
        names = [path.name for path in self._root.iterdir() if path.is_dir()]
        return [name.removeprefix(_KEY) if name.startswith(_KEY) else None for name in names if _is_owner(name)]

    def num_bytes(self) -> int:
        """The size of all files."""
        total = 0
        for directory, _, names in os.walk(self._root):
            for name in names:
                try:
                    total += os.stat(os.path.join(directory, name)).st_size
                except FileNotFoundError:  # it was a moment ago
                    continue
        return total

    def check(self) -> None:
        """Raise OSError if it cannot be made, or not be written."""
        with self.locked():
            pass

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether this process alone runs the batches, while the context lasts. The lock ends with the process.

        Raises:
            OSError: the directory cannot be made, or not be written.
        """
        make_private(self._root)
        with open(self._root / _LOCK, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _is_owner(name: str) -> bool:
    return name == _NO_KEY or name.startswith(_KEY)
