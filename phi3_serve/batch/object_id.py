"""Ids of files and batches. Their order is that in which they were made."""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

_DIGITS = "[0-9a-f]{24}"


@dataclass(frozen=True, slots=True)
class IdKind:
    """The ids that begin with ``prefix``: 16 hexadecimal digits of the time in nanoseconds, and 8 random ones."""

    prefix: str

    def new(self) -> str:
        """An id that nothing else has."""
        return f"{self.prefix}{time.time_ns():016x}{secrets.token_hex(4)}"

    def matches(self, text: str) -> bool:
        """Whether ``text`` is such an id. Only then it may be a part of a path."""
        return re.fullmatch(self.prefix + _DIGITS, text) is not None


FILE_ID = IdKind("file-")
BATCH_ID = IdKind("batch_")


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list. ``has_more``: the list goes on behind it."""

    ids: Sequence[str]
    has_more: bool


def page(ids: Sequence[str], *, after: str | None, limit: int, newest_first: bool = True) -> Page:
    """The at most ``limit`` ids behind ``after``, or the first ones. ``after`` itself need not exist any more."""
    ordered = sorted(ids, reverse=newest_first)
    if after is not None:
        ordered = [each for each in ordered if (each < after if newest_first else each > after)]
    return Page(ordered[:limit], has_more=len(ordered) > limit)
