"""The text of an answer, told apart into words and calls of tools, as a whole and piece by piece."""

import json
import math
import re
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from phi3_serve.errors import EngineFailure
from phi3_serve.tool_calls import (
    CALL_END,
    FENCE_BEGIN,
    FENCE_END,
    FREE_LIST_BEGIN,
    LIST_BEGIN,
    LIST_END,
    LIST_SEPARATOR,
    SPACE,
    ToolCalls,
    call_begin,
    free_call_begin,
)

_HALF_OF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Words:
    """The next words of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    """A call begins. ``index``: of the call in the answer."""

    index: int
    id: str  # without the prefix that each API has
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of a call's arguments, which are JSON together."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnds:
    """A call is complete."""

    index: int


Piece = Words | CallBegins | Arguments | CallEnds


@dataclass(slots=True)
class Call:
    """One call of a tool."""

    id: str
    name: str
    arguments: str = ""  # JSON of an object
    is_complete: bool = False  # False: the answer ran out of tokens within it

    @property
    def input(self) -> dict[str, Any]:
        """The arguments; none if they are not complete."""
        return arguments_of(self.arguments) if self.is_complete else {}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a whole answer says."""

    text: str
    calls: tuple[Call, ...] = ()


class AnswerReader:
    """Reads one answer as it comes.

    An answer that must be calls is told apart at once. One that may be a call is held back while it begins like one,
    and is a call only if all of it is calls: then each comes in one piece at the end.
    """

    def __init__(self, calls: ToolCalls | None) -> None:
        self._reader = None if calls is None else _Forced() if calls.is_forced else _Free(calls)
        self.num_calls = 0

    def add(self, text: str) -> list[Piece]:
        """What the next ``text`` of the answer adds."""
        if self._reader is None:
            return [Words(text)] if text else []
        return self._counted(self._reader.add(text))

    def finish(self, *, is_whole: bool) -> list[Piece]:
        """What the end of the answer adds. ``is_whole``: whether it did not run out of tokens."""
        return [] if self._reader is None else self._counted(self._reader.finish(is_whole=is_whole))

    def _counted(self, pieces: Iterator[Piece]) -> list[Piece]:
        found = list(pieces)
        self.num_calls += sum(isinstance(piece, CallBegins) for piece in found)
        return found


def read(text: str, calls: ToolCalls | None, *, is_whole: bool) -> Answer:
    """What the whole answer ``text`` says."""
    reader = AnswerReader(calls)
    words: list[str] = []
    found: list[Call] = []
    for piece in (*reader.add(text), *reader.finish(is_whole=is_whole)):
        match piece:
            case Words(some):
                words.append(some)
            case CallBegins(_, call_id, name):
                found.append(Call(call_id, name))
            case Arguments(index, some):
                found[index].arguments += some
            case CallEnds(index):
                found[index].is_complete = True
    return Answer("".join(words), tuple(found))


def arguments_of(text: str) -> dict[str, Any]:
    """The arguments that ``text`` has as JSON.

    Numbers beyond every float become the largest one. Halves of surrogate pairs become U+FFFD: UTF-8 has none.

    Raises:
        EngineFailure: they are nested more deeply than Python reads and writes JSON, about a thousand levels.
    """
    try:
        found: dict[str, Any] = json.loads(text, parse_float=_finite, parse_int=_integer)
        as_text = json.dumps(found, ensure_ascii=False)
    except RecursionError:
        raise EngineFailure("Generation failed: the arguments of a call are nested too deeply.") from None
    return json.loads(_HALF_OF_PAIR.sub("\N{REPLACEMENT CHARACTER}", as_text)) if "\\u" in text else found


class _Forced:
    """Calls as ``tool_calls.calls_text`` writes them; the grammar allows nothing else."""

    _BEGIN = re.compile(
        f"(?:{re.escape(LIST_BEGIN)}|{re.escape(LIST_SEPARATOR)}){re.escape(call_begin('NAME'))}".replace(
            "NAME", '([^"]+)'
        )
    )

    def __init__(self) -> None:
        self._index = -1  # of the call
        self._rest = ""  # that is not told apart yet
        self._arguments: _ObjectEnd | None = None  # of the call that is open

    def add(self, text: str) -> Iterator[Piece]:
        self._rest += text
        while self._rest:
            if self._arguments is not None:
                end = self._arguments.find(self._rest)
                piece, self._rest = self._rest[:end], self._rest[end:]
                yield Arguments(self._index, piece)
                if self._arguments.is_found:
                    self._arguments = None
            elif self._rest.startswith(CALL_END):
                self._rest = self._rest[len(CALL_END) :]
                yield CallEnds(self._index)
            elif (begin := self._BEGIN.match(self._rest)) is not None:
                self._rest, self._index, self._arguments = self._rest[begin.end() :], self._index + 1, _ObjectEnd()
                yield CallBegins(self._index, _new_id(), begin[1])
            else:  # not enough of it, or the end
                return

    def finish(self, *, is_whole: bool) -> Iterator[Piece]:
        if is_whole and self._rest not in ("", LIST_END):
            yield Words(self._rest)  # no grammar has forced it


class _Free:
    """An answer that may be calls."""

    def __init__(self, calls: ToolCalls) -> None:
        self._calls = calls
        self._text = ""
        self._is_held = True
        names = [tool.name for tool in calls.tools]
        self._begins = [f'{bracket}{{"name":"{name}","arguments":' for name in names for bracket in ("", "[")]

    def add(self, text: str) -> Iterator[Piece]:
        if not self._is_held:
            yield Words(text)
            return
        self._text += text
        if not self._may_be_calls():
            self._is_held = False
            yield Words(self._text)

    def finish(self, *, is_whole: bool) -> Iterator[Piece]:
        if not self._is_held:
            return
        found = _free_calls(self._text, self._calls) if is_whole else None
        if found is None:
            if self._text:
                yield Words(self._text)
            return
        for index, (name, arguments) in enumerate(found[: self._calls.max_calls]):
            yield CallBegins(index, _new_id(), name)
            yield Arguments(index, arguments)
            yield CallEnds(index)

    def _may_be_calls(self) -> bool:
        """Whether the text so far is the beginning of calls, or longer than it."""
        begin = "".join(self._text[:1000].split())
        begin = re.sub("^(?:`{1,2}$|```[a-z]*)", "", begin)
        return any(one.startswith(begin) or begin.startswith(one) for one in self._begins)


def _free_calls(text: str, calls: ToolCalls) -> list[tuple[str, str]] | None:
    """The name and the arguments of each call, if all of ``text`` is calls in the forms of ``tool_calls``."""
    text = text.rstrip()
    begin = re.compile(free_call_begin(tool.name for tool in calls.tools) + SPACE)
    opening = re.compile(f"{SPACE}({FENCE_BEGIN})?({FREE_LIST_BEGIN})?").match(text)
    if opening is None:
        return None
    fence, bracket = opening.groups()
    if fence is not None:
        if not text.endswith(FENCE_END):
            return None
        text = text[: -len(FENCE_END)].rstrip()
    closing = re.compile(rf"{SPACE}\}}")
    found: list[tuple[str, str]] = []
    at = opening.end()
    while (call := begin.match(text, at)) is not None:
        end = _object_end(text, call.end())
        closed = None if end is None else closing.match(text, end)
        if end is None or closed is None:
            return None
        found.append((call[1], text[call.end() : end]))
        rest = text[closed.end() :].strip()
        if rest == ("" if bracket is None else "]"):
            return found
        separator = re.compile(f"{SPACE},{SPACE}").match(text, closed.end())
        if bracket is None or separator is None:
            return None
        at = separator.end()
    return None


def _object_end(text: str, begin: int) -> int | None:
    """The end of the JSON object that begins at ``begin``; None if there is none."""
    decoder = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_refuse_constant)
    try:
        value, end = decoder.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    return end if isinstance(value, dict) else None


class _ObjectEnd:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_found = False

    def find(self, text: str) -> int:
        """How many characters of ``text`` belong to the object."""
        for number, character in enumerate(text, 1):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_found = True
                    return number
        return len(text)


def _new_id() -> str:
    return uuid.uuid4().hex[:24]


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _integer(text: str) -> float:
    """Python refuses to read integers of more than 4,300 digits."""
    return int(text) if len(text) < 300 else _finite(text)


def _refuse_constant(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity are no JSON
