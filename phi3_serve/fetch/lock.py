"""One process at a time writes a directory."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from phi3_serve.engine.load_errors import resource_error
from phi3_serve.errors import AlreadyFetching, CheckpointError, CheckpointIncomplete

LOCK = ".fetch.lock"  # stays in the directory: a process that waits for it may have it open


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make ``directory``, and let no other process download into it. The lock ends with the process."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK).open("ab")
    except OSError as error:
        raise cannot_write(directory, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyFetching(f"{directory}: another fetch is running; wait for its end, or stop it") from None
        except OSError as error:  # a file system without locks
            raise CheckpointIncomplete(f"{directory / LOCK}: cannot be locked: {error.strerror}") from None
        yield


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The error for a file or directory that cannot be written."""
    return resource_error(str(path), error) or CheckpointIncomplete(f"{path}: cannot be written: {error.strerror}")
