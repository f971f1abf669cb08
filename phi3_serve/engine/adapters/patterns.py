"""The regular expressions of one ``adapter_config.json``, matched for a limited time. Plain Python.

``re`` may match for ever, and holds the interpreter's lock meanwhile, so that all other threads stand. ``regex`` has a
time limit and gives the lock away.
"""

import math
import re
import time
from typing import Any

import regex

MAX_PATTERNS = 1_000
MAX_CHARACTERS = 1_000
MAX_REPETITIONS = 1_000
SECONDS = 2.0  # for all of a file, on an idle core; those of PEFT's users take milliseconds
# Giving the lock away and taking it again may cost 5 ms beside a busy thread, so short matches keep it.
_SECONDS_WITH_LOCK = 0.01
_COUNTS = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class PatternError(ValueError):
    """A pattern that cannot be used; the message says why, without the pattern."""


class Patterns:
    """Compiles each pattern once, and knows how much time is left."""

    def __init__(self) -> None:
        """For one file."""
        self._compiled: dict[str, Any] = {}
        self._seconds_left = SECONDS

    def add(self, pattern: str) -> None:
        """Compile ``pattern``.

        Raises:
            PatternError: it is none that ``re`` has, it is too long, or there are too many.
        """
        if len(pattern) > MAX_CHARACTERS:
            raise PatternError(f"has {len(pattern)} characters; allowed: at most {MAX_CHARACTERS}")
        if len(self._compiled) >= MAX_PATTERNS:
            raise PatternError(f"is one pattern too many; allowed: at most {MAX_PATTERNS} in a file")
        _check_repetitions(pattern)
        started = time.thread_time()
        try:
            re.compile(pattern)  # PEFT's; ``regex`` has more syntax
            self._compiled[pattern] = regex.compile(pattern)
        except (re.error, regex.error, OverflowError) as error:
            raise PatternError(f"is no regular expression: {error}") from None
        except RecursionError:
            raise PatternError("is no regular expression: it has too many brackets within one another") from None
        self._count(started)

    def groups(self, pattern: str, text: str) -> dict[str, str] | None:
        """The named groups if ``text`` begins as ``pattern`` says, as with ``re.match``; else None.

        ``pattern`` was added before.

        Raises:
            PatternError: the time is over.
        """
        found = self._timed(self._compiled[pattern].match, text)
        return None if found is None else found.groupdict()

    def is_full_match(self, pattern: str, text: str) -> bool:
        """Whether ``text`` is as ``pattern`` says, as with ``re.fullmatch``. See ``groups``."""
        return self._timed(self._compiled[pattern].fullmatch, text) is not None

    def _timed(self, match: Any, text: str) -> Any:
        started = time.thread_time()
        try:
            return match(text, timeout=_SECONDS_WITH_LOCK, concurrent=False)
        except TimeoutError:
            pass
        try:
            return match(text, timeout=max(self._seconds_left, _SECONDS_WITH_LOCK), concurrent=True)
        except TimeoutError:
            raise PatternError(_too_slow()) from None
        finally:
            self._count(started)

    def _count(self, started: float) -> None:
        self._seconds_left -= time.thread_time() - started
        if self._seconds_left < 0:
            raise PatternError(_too_slow())


def _too_slow() -> str:
    return f"takes too long; allowed: at most {SECONDS:g} s for all patterns of a file"


def _check_repetitions(pattern: str) -> None:
    """Refuse what ``regex`` would expand into gigabytes: it copies what is repeated, also within other repetitions."""
    if "{" in _COUNTS.sub("", pattern) or "[:" in pattern:
        raise PatternError("has a { that is no repetition, or a [: ; no name of a layer has them")
    counts = [max(int(number or 1) for number in found if found) for found in _COUNTS.findall(pattern)]
    if math.prod(counts) > MAX_REPETITIONS:
        raise PatternError(f"has repetitions of {counts}; allowed: at most {MAX_REPETITIONS}, as a product")
