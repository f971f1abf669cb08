"""The directory of a server's files, in the system's temporary directory, that no other user can open."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from phi3_serve.errors import Phi3ServeError


def of_server(port: int) -> Path:
    """The directory of the server that listens on ``port``.

    Raises:
        Phi3ServeError: it is not safe; see ``make_private``.
    """
    directory = Path(tempfile.gettempdir()) / f"phi3-serve-{os.getuid()}-{port}"
    make_private(directory)
    return directory


def make_private(directory: Path) -> None:
    """Make ``directory`` for this user only, or accept one that is so already.

    Raises:
        Phi3ServeError: another user owns it or may open it, or it is no directory.
    """
    with suppress(FileExistsError):
        directory.mkdir(mode=stat.S_IRWXU)
    found = directory.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        problem = "is not a directory"
    elif found.st_uid != os.getuid():
        problem = f"belongs to another user (uid {found.st_uid})"
    elif mode & (stat.S_IRWXG | stat.S_IRWXO):
        problem = f"is open to other users (mode {mode:o})"
    else:
        return
    raise Phi3ServeError(f"{directory}: {problem}. Files are not safe there. Remove it, or set TMPDIR.")
