"""Answers told apart into words and calls, in pieces of any size."""

import json
import random
from typing import Any

import pytest

from phi3_serve.api.tools.answer import AnswerReader, Arguments, CallBegins, CallEnds, Piece, Words, arguments_of, read
from phi3_serve.errors import EngineFailure
from phi3_serve.tool_calls import MAX_CALLS, CallableTool, ToolCalls, calls_text

TOOLS = (
    CallableTool("get_weather", {"type": "object"}, "tools.0"),
    CallableTool("f.2-x", {"type": "object"}, "tools.1"),
)
FORCED = ToolCalls(tools=TOOLS, is_forced=True)
FREE = ToolCalls(tools=TOOLS, is_forced=False)
ROME = '{"city": "Rome"}'
ODD = r'{"a": "]}\"{[\\", "b": [{"c": {}}], "d": 1e5}'

CALLS = [
    [("get_weather", ROME)],
    [("f.2-x", "{}")],
    [("get_weather", ODD), ("f.2-x", "{ }"), ("get_weather", ROME)],
]
OTHER_FORMS = [
    ('{"name": "get_weather", "arguments": {"city": "Rome"}}', [("get_weather", ROME)]),
    ('\n {\n"name" :"f.2-x",\t"arguments":{} }\n', [("f.2-x", "{}")]),
    ('```json\n[\n  {"name": "get_weather", "arguments": {"city": "Rome"}}\n]\n```\n', [("get_weather", ROME)]),
    ('```\n{"name": "f.2-x", "arguments": {}}```', [("f.2-x", "{}")]),
    ('[{"name":"f.2-x","arguments":{}},{"name":"f.2-x","arguments":{}}]', [("f.2-x", "{}")] * 2),
]
TEXTS = [
    "",
    "Hello",
    " [ not calls ]",
    '[{"name": "get_weather", "arguments": {"city": "Rome"}}',  # not closed
    '[{"name": "get_weather", "arguments": {"city": "Rome"}}] Then I will see.',
    'I call [{"name": "get_weather", "arguments": {"city": "Rome"}}]',
    '[{"name": "get_weather", "arguments": {"city": "Rome"}}, 5]',
    '[{"name": "get_weather", "arguments": {"city": "Rome"}},]',
    '[{"name": "unknown", "arguments": {}}]',
    '[{"name": "get_weather", "arguments": "Rome"}]',
    '[{"name": "get_weather", "arguments": [1]}]',
    '[{"name": "get_weather", "arguments": {"a": NaN}}]',
    '[{"name": "get_weather", "arguments": {"a": 1}, "more": 2}]',
    '{"name": "get_weather"}',
    '{"name": "get_weather", "arguments": {}}]',
    '[{"name": "get_weather", "arguments": {}}',
    '```json\n[{"name": "get_weather", "arguments": {}}]',
    "```python\nprint(1)\n```",
    '{"name": "get_weather", "arguments": ' + '{"a": ' * 2000 + "1" + "}" * 2001,
]


def pairs(text: str, calls: ToolCalls, *, is_whole: bool = True) -> list[tuple[str, str]]:
    answer = read(text, calls, is_whole=is_whole)
    assert all(call.is_complete for call in answer.calls)
    assert not (answer.text and answer.calls)
    return [(call.name, call.arguments) for call in answer.calls]


def joined(pieces: list[Piece]) -> tuple[str, list[list[Any]]]:
    """The words, and for each call its name, its arguments, and whether it has ended."""
    words = ""
    calls: list[list[Any]] = []
    for piece in pieces:
        match piece:
            case Words(text):
                words += text
            case CallBegins(index, _, name):
                assert index == len(calls)
                calls.append([name, "", False])
            case Arguments(index, text):
                assert text
                assert index == len(calls) - 1
                calls[index][1] += text
            case CallEnds(index):
                calls[index][2] = True
    return words, calls


def in_pieces(text: str, calls: ToolCalls | None, draw: random.Random, *, is_whole: bool = True) -> list[Piece]:
    reader, at = AnswerReader(calls), 0
    found: list[Piece] = []
    while at < len(text):
        size = draw.choice([1, 1, 2, 5, 40])
        found += reader.add(text[at : at + size])
        at += size
    found += reader.finish(is_whole=is_whole)
    assert reader.num_calls == sum(isinstance(piece, CallBegins) for piece in found)
    return found


@pytest.mark.parametrize("calls", [FORCED, FREE])
@pytest.mark.parametrize("expected", CALLS, ids=str)
def test_the_form_that_the_model_is_asked_for(calls: ToolCalls, expected: list[tuple[str, str]]) -> None:
    assert pairs(calls_text(expected), calls) == expected
    draw = random.Random(0)
    for _ in range(20):
        words, found = joined(in_pieces(calls_text(expected), calls, draw))
        assert (words, found) == ("", [[*call, True] for call in expected])


@pytest.mark.parametrize(("text", "expected"), OTHER_FORMS, ids=lambda value: str(value)[:40])
def test_other_forms(text: str, expected: list[tuple[str, str]]) -> None:
    assert pairs(text, FREE) == expected
    draw = random.Random(0)
    for _ in range(20):
        assert joined(in_pieces(text, FREE, draw)) == ("", [[*call, True] for call in expected])


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text[:60])
def test_what_is_no_call_in_full_stays_text(text: str) -> None:
    answer = read(text, FREE, is_whole=True)
    assert (answer.text, answer.calls) == (text, ())
    draw = random.Random(0)
    for calls in (FREE, None):
        for _ in range(20):
            assert joined(in_pieces(text, calls, draw)) == (text, [])


def test_an_answer_without_tokens_for_its_end_is_no_call() -> None:
    text = calls_text(CALLS[0])
    assert read(text, FREE, is_whole=False).text == text


def test_words_are_held_back_only_while_they_may_be_a_call() -> None:
    reader = AnswerReader(FREE)
    assert reader.add("[") == reader.add('{"na') == []
    assert reader.add('me": "get_w') == []
    assert reader.add('iki"') == [Words('[{"name": "get_wiki"')]
    assert reader.add("}]") == [Words("}]")]
    assert AnswerReader(FREE).add("Well") == [Words("Well")]


def test_forced_calls_come_as_they_are_written() -> None:
    reader = AnswerReader(FORCED)
    assert reader.add('[{"name": "get_weather", "argu') == []
    begins, arguments = reader.add('ments": {"city": "Ro')
    assert isinstance(begins, CallBegins)
    assert arguments == Arguments(0, '{"city": "Ro')
    assert reader.add('me"}}, {"name": "f.2-x"') == [Arguments(0, 'me"}'), CallEnds(0)]
    assert reader.finish(is_whole=False) == []


def test_a_forced_call_that_is_cut() -> None:
    text = calls_text(CALLS[0])
    for end in range(len(text)):
        answer = read(text[:end], FORCED, is_whole=False)
        assert answer.text == ""
        assert len(answer.calls) <= 1
        for call in answer.calls:
            assert ROME.startswith(call.arguments)
            assert call.input == ({"city": "Rome"} if call.is_complete else {})


def test_no_more_calls_than_are_allowed() -> None:
    many = [("f.2-x", "{}")] * (MAX_CALLS + 3)
    assert len(pairs(calls_text(many), FREE)) == MAX_CALLS
    assert len(pairs(calls_text(many), ToolCalls(tools=TOOLS, is_forced=False, max_calls=1))) == 1


def test_numbers_beyond_every_float() -> None:
    found = arguments_of('{"a": 1e999, "b": -1e999, "c": %s, "d": 12345678901234567890}' % ("9" * 5000))
    assert found["a"] == found["c"] == -found["b"] > 1e308
    assert found["d"] == 12345678901234567890
    json.dumps(found, allow_nan=False)


def test_arguments_that_no_reader_takes_are_a_failure_that_says_so() -> None:
    with pytest.raises(EngineFailure, match="nested too deeply"):
        arguments_of('{"a": ' * 3000 + "1" + "}" * 3000)


def test_halves_of_surrogate_pairs_can_be_sent_as_utf_8() -> None:
    found = arguments_of(r'{"a": ["\ud800", "\ud83d\ude00", "\\ud800"], "\udfff": "\u0000"}')
    assert found == {"a": ["\ufffd", "\U0001f600", r"\ud800"], "\ufffd": "\x00"}
