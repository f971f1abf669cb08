"""Directories that only the user of the server can open: nobody else reads what is asked."""

import stat
from pathlib import Path


def make_private(directory: Path) -> None:
    """Make ``directory`` and its parents, as far as they are not there. ``Path.mkdir`` gives parents another mode.

    Raises:
        OSError: one cannot be made.
    """
    for path in reversed([directory, *directory.parents]):
        if not path.exists():
            path.mkdir(mode=stat.S_IRWXU, exist_ok=True)
