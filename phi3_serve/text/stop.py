"""OpenAI's ``stop``: the text ends before the first of these strings; transformers' stop_strings stay in it.

The first is the one that is complete first, as the model stops there; of those that end together, the longest.
"""

from collections.abc import Sequence


class StopText:
    """Cuts a text in pieces at a stop string. It holds back text that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self._is_over = False

    def add(self, text: str) -> str:
        """The text that is final after ``text``; it may be empty."""
        if self._is_over:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self._is_over = True
            return self._give(min(found)[1])
        return self._give(len(self._held) - self._length_of_start())

    def finish(self) -> str:
        """The rest of the text."""
        return "" if self._is_over else self._give(len(self._held))

    def _length_of_start(self) -> int:
        """The length of the longest suffix of the held text that is the start of a stop string."""
        longest = min(self._longest - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given
