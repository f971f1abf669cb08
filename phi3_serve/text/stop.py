"""OpenAI's ``stop``: the text ends before the first of these strings; transformers' stop_strings stay in it.

The first is the one that is complete first, as the model stops there; of those that end together, the longest.
"""

from collections.abc import Sequence


class StopText:
    """Cuts a text in pieces at a stop string. It holds back text that may be the start of one."""

    def __init__(self, stops: Sequence[str], *, keeps_stop: bool = False) -> None:
        """``keeps_stop``: the text ends behind the stop string, not before it."""
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._keeps_stop = keeps_stop
        self._held = ""
        self._first_end = 0  # characters of the held text in which no stop string ends
        self._is_over = False
        self.found: str | None = None
        """The string that has ended the text."""

    def add(self, text: str, *, may_stop: bool = True) -> str:
        """The text that is final after ``text``; it may be empty. Without ``may_stop`` no stop string ends in it."""
        if self._is_over:
            return ""
        self._held += text
        if not may_stop:
            self._first_end = len(self._held)
        if found := [(place, stop) for stop in self._stops if (place := self._place(stop)) is not None]:
            self._is_over = True
            (end, start), self.found = min(found)
            return self._give(end if self._keeps_stop else start)
        return self._give(len(self._held) - self._length_of_start())

    def finish(self) -> str:
        """The rest of the text."""
        return "" if self._is_over else self._give(len(self._held))

    def _place(self, stop: str) -> tuple[int, int] | None:
        """The end and the start of ``stop`` in the held text."""
        start = self._held.find(stop, max(0, self._first_end + 1 - len(stop)))
        return None if start < 0 else (start + len(stop), start)

    def _length_of_start(self) -> int:
        """The length of the longest suffix of the held text that is the start of a stop string."""
        longest = min(self._longest - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        self._first_end = max(0, self._first_end - length)
        return given
