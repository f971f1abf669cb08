"""Strings that remember which of their characters a template wrote.

Everything that a template writes itself is a ``Traced`` string whose characters are all *written*. What comes from a
user is a plain string. The operations of ``Traced`` keep the origin of each character. Any other operation gives a
plain string, in which nothing is written. So no template can make a character of a user a written one.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

Span = tuple[int, int]  # begin and end of a run of characters


class Traced(str):
    """A string with the spans of its written characters, in order and never adjacent. By default nothing is written."""

    # Jinja's sandbox hides names with a leading underscore from templates.
    __slots__ = ("_written",)
    _written: tuple[Span, ...]

    def __new__(cls, text: str = "", spans: tuple[Span, ...] = ()) -> "Traced":
        """``text``, of which ``spans`` are written."""
        traced = super().__new__(cls, text)
        traced._written = spans
        return traced

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> "Traced":
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> "Traced":  # Python asks this before a plain ``other``
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> "Traced":
        return joined([self] * times.__index__())

    __rmul__ = __mul__

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            begin, end, step = key.indices(len(self))
            return self._part(begin, max(begin, end)) if step == 1 else _of_written(str.__getitem__)(self, key)
        begin = range(len(self))[key]
        return self._part(begin, begin + 1)

    def strip(self, chars: str | None = None, /) -> "Traced":
        """As of ``str``."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        """As of ``str``."""
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        """As of ``str``."""
        return self._part(0, len(super().rstrip(chars)))

    def join(self, parts: Iterable[str], /) -> "Traced":
        """As of ``str``."""
        return joined(part for number, text in enumerate(parts) for part in ((self, text) if number else (text,)))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """As of ``str``."""
        if not old:
            return super().replace(old, new, count)
        parts: list[str] = []
        begin, left = 0, count.__index__()
        while left != 0 and (at := self.find(old, begin)) >= 0:
            parts += self._part(begin, at), new
            begin, left = at + len(old), left - 1
        return joined([*parts, self._part(begin, len(self))])

    def _part(self, begin: int, end: int) -> "Traced":
        first = bisect_right(self._written, begin, key=lambda span: span[1])
        after = bisect_left(self._written, end, key=lambda span: span[0])
        spans = ((max(start, begin) - begin, min(stop, end) - begin) for start, stop in self._written[first:after])
        return Traced(super().__getitem__(slice(begin, end)), tuple(spans))


def written(text: str) -> Traced:
    """``text`` with all characters written."""
    return Traced(text, ((0, len(text)),) if text else ())


def joined(parts: Iterable[object]) -> Traced:
    """``"".join(map(str, parts))``."""
    texts: list[str] = []
    spans: list[Span] = []
    length = 0
    for part in parts:
        text = str(part)
        if not length:  # a template that collects its text in a variable copies all spans for each message
            spans = list(text._written) if isinstance(text, Traced) else []
            texts.append(text)
            length = len(text)
            continue
        for start, stop in text._written if isinstance(text, Traced) else ():
            if spans and spans[-1][1] == length + start:
                spans[-1] = (spans[-1][0], length + stop)
            else:
                spans.append((length + start, length + stop))
        texts.append(text)
        length += len(text)
    return Traced("".join(texts), tuple(spans))


def written_matches(text: Traced, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """The matches of ``pattern`` that lie within written spans."""
    plain = "".join((text,))
    for start, stop in text._written:
        yield from pattern.finditer(plain, start, stop)


def _of_written(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of ``str``, whose results are written if everything that it gets is."""

    def traced(*values: Any, **named: Any) -> Any:
        result = method(*values, **named)
        return _as_written(result) if all(map(_is_written, (*values, *named.values()))) else result

    return traced


def _is_written(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_written, value))
    if isinstance(value, Traced):
        return value._written == ((0, len(value)),) or not value
    return isinstance(value, int | float | slice | None)


def _as_written(result: Any) -> Any:
    if isinstance(result, list | tuple):
        return type(result)(map(_as_written, result))
    return written(result) if isinstance(result, str) else result


for _method in (
    *(str.capitalize, str.casefold, str.lower, str.swapcase, str.title, str.upper),
    *(str.center, str.expandtabs, str.ljust, str.rjust, str.zfill, str.removeprefix, str.removesuffix, str.__mod__),
    *(str.partition, str.rpartition, str.rsplit, str.split, str.splitlines),
):
    setattr(Traced, _method.__name__, _of_written(_method))
