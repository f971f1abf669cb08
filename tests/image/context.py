"""The files that Docker sends from the project to a build: all of them, less those of .dockerignore."""

import os
import re
from collections.abc import Iterator
from pathlib import Path


def context_files(root: Path) -> Iterator[str]:
    """The paths of the build context, relative to ``root``."""
    rules = _rules((root / ".dockerignore").read_text())
    for directory, names, files in os.walk(root):
        relative = Path(directory).relative_to(root)
        if relative == Path("."):
            names[:] = [name for name in names if name not in (".git", ".venv")]
        yield from (path for name in files if not _is_ignored(path := (relative / name).as_posix(), rules))


def _rules(text: str) -> list[tuple[re.Pattern[str], bool]]:
    """Each pattern with whether it is an exception (a line with !)."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(_pattern(line.removeprefix("!")), line.startswith("!")) for line in lines]


def _pattern(glob: str) -> re.Pattern[str]:
    """As Go's filepath.Match, with ** for any number of directories; a directory stands for all in it."""
    parts = re.split(r"(\*\*/?|\*|\?)", glob.strip("/"))
    words = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def _is_ignored(path: str, rules: list[tuple[re.Pattern[str], bool]]) -> bool:
    """The last rule that matches decides."""
    ignored = False
    for pattern, is_exception in rules:
        if pattern.fullmatch(path):
            ignored = not is_exception
    return ignored
