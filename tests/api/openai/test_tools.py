"""Calls of tools in OpenAI's chat, with the official SDK."""

import json
import re
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import jsonschema
import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from tests.api.saying import saying

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"$ref": "#/$defs/unit"}},
    "required": ["city", "unit"],
    "$defs": {"unit": {"enum": ["celsius", "fahrenheit"]}},
}
SUM = {
    "type": "object",
    "properties": {
        "terms": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3}
    },
    "required": ["terms"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": CITY, "add": SUM, "get_time": {"type": "object", "properties": {}}}
WEATHER = {"name": "get_weather", "description": "The weather of a city.", "parameters": CITY}
FUNCTIONS: list[Any] = [WEATHER, {"name": "add", "parameters": SUM, "strict": True}, {"name": "get_time"}]
TOOLS: list[Any] = [{"type": "function", "function": function} for function in FUNCTIONS]
NAMED: Any = {"type": "function", "function": {"name": "add"}}
ASKED: dict[str, Any] = {"model": "tested", "messages": QUESTION, "max_tokens": 900}
ROME = '[{"name": "get_weather", "arguments": {"city": "Rome", "unit": "celsius"}}]'
CALL: Any = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def tiny(make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str]) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{serve_app(make_tiny_app())}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def check(calls: Any) -> list[str]:
    """The names of calls, whose arguments are valid."""
    for call in calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert len({call.id for call in calls}) == len(calls)
    return [call.function.name for call in calls]


def prompt(client: TestClient, **fields: Any) -> str:
    """The text that the model reads."""
    body = {"model": "tested", "messages": QUESTION, **fields}
    answer = client.post("/apply-template", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["prompt"]
    return text


@pytest.mark.parametrize("more", [{"temperature": 0}, {"seed": 1}, {"extra_body": {"num_beams": 2}}], ids=str)
def test_a_required_call_is_always_valid(sdk: OpenAI, more: dict[str, Any]) -> None:
    answer = sdk.chat.completions.create(**ASKED, tools=TOOLS, tool_choice="required", **more)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content, choice.message.refusal, choice.message.role) == (None, None, "assistant")
    assert 1 <= len(check(choice.message.tool_calls)) <= 16
    assert answer.usage
    assert answer.usage.completion_tokens > 5


def test_one_call_at_most(sdk: OpenAI) -> None:
    for seed in range(4):
        asked: Any = {**ASKED, "tools": TOOLS, "tool_choice": "required", "seed": seed}
        (choice,) = sdk.chat.completions.create(**asked, parallel_tool_calls=False).choices
        assert len(check(choice.message.tool_calls)) == 1


def test_a_named_tool_is_called_once_and_says_stop(sdk: OpenAI) -> None:
    for seed in range(4):
        (choice,) = sdk.chat.completions.create(**ASKED, tools=TOOLS, tool_choice=NAMED, seed=seed).choices
        assert check(choice.message.tool_calls) == ["add"]
        assert choice.finish_reason == "stop"


def test_allowed_tools(sdk: OpenAI, client: TestClient) -> None:
    allowed: Any = {"mode": "required", "tools": [NAMED, {"type": "function", "function": {"name": "get_time"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = sdk.chat.completions.create(**ASKED, tools=TOOLS, tool_choice=choice, n=4, seed=1)
    assert {name for c in answer.choices for name in check(c.message.tool_calls)} <= {"add", "get_time"}
    assert "get_weather" not in prompt(client, tools=TOOLS, tool_choice=choice)


@pytest.mark.parametrize("tool_choice", ["required", NAMED], ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_the_same(sdk: OpenAI, tool_choice: Any, n: int) -> None:
    asked: Any = {**ASKED, "tools": TOOLS, "tool_choice": tool_choice, "seed": 5, "n": n}
    plain = sdk.chat.completions.create(**asked)
    chunks = list(sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == plain.usage
    for expected in plain.choices:
        choices = [c for chunk in chunks for c in chunk.choices if c.index == expected.index]
        assert (choices[0].delta.role, choices[0].delta.content) == ("assistant", None)
        assert [c.finish_reason for c in choices] == [None] * (len(choices) - 1) + [expected.finish_reason]
        deltas = [delta for c in choices for delta in c.delta.tool_calls or ()]
        begins = [delta for delta in deltas if delta.id]
        assert [d.function.name for d in begins if d.function] == [
            d.function.name for d in expected.message.tool_calls or () if d.type == "function"
        ]
        assert all(d.type == "function" and d.function and d.function.arguments == "" for d in begins)
        for index, call in enumerate(expected.message.tool_calls or ()):
            pieces = [d.function.arguments or "" for d in deltas if d.index == index and d.function]
            assert call.type == "function"
            assert "".join(pieces) == call.function.arguments
        assert not any(c.delta.content for c in choices)


def test_the_sdk_gathers_a_stream(sdk: OpenAI) -> None:
    with sdk.chat.completions.stream(**ASKED, tools=TOOLS, tool_choice="required", seed=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert check(final.choices[0].message.tool_calls)


def test_a_stream_of_beams(sdk: OpenAI) -> None:
    asked: Any = {**ASKED, "tools": TOOLS, "tool_choice": NAMED, "n": 2, "extra_body": {"num_beams": 2}}
    plain = sdk.chat.completions.create(**asked)
    found = ["", ""]
    for chunk in sdk.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            for delta in choice.delta.tool_calls or ():
                found[choice.index] += delta.function.arguments or "" if delta.function else ""
    assert found == [c.message.tool_calls[0].function.arguments for c in plain.choices if c.message.tool_calls]


def test_logprobs_and_token_ids_of_a_call(sdk: OpenAI) -> None:
    asked: Any = {
        **ASKED,
        "tools": TOOLS,
        "tool_choice": NAMED,
        "temperature": 0,
        "logprobs": True,
        "extra_body": {"return_token_ids": True},
    }
    (plain,) = sdk.chat.completions.create(**asked).choices
    streamed = [c for chunk in sdk.chat.completions.create(**asked, stream=True) for c in chunk.choices]
    assert plain.logprobs
    tokens = plain.logprobs.content or []
    assert [t for c in streamed if c.logprobs for t in c.logprobs.content or ()] == tokens
    assert "".join(t.token for t in tokens).startswith('[{"name": "add"')
    assert plain.model_extra
    ids = [i for c in streamed for i in (c.model_extra or {}).get("token_ids", ())]
    assert ids == plain.model_extra["token_ids"]


def test_a_call_without_tokens_for_its_end(sdk: OpenAI) -> None:
    asked: Any = {
        **ASKED,
        "max_tokens": 34,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }
    (choice,) = sdk.chat.completions.create(**asked).choices
    assert choice.finish_reason == "length"
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(**{**asked, "tools": [TOOLS[1]], "tool_choice": NAMED, "max_tokens": 8})


class Unit(Enum):
    """Of a temperature."""

    CELSIUS = "celsius"
    FAHRENHEIT = "fahrenheit"


class Place(BaseModel):
    """Where."""

    city: str = Field(max_length=8)


class GetWeather(BaseModel):
    """The weather."""

    places: list[Place] = Field(max_length=2)
    unit: Unit


class Report(BaseModel):
    """An answer in words."""

    mood: Unit


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "GetWeather"}}], ids=str)
def test_parse_of_the_sdk(sdk: OpenAI, tool_choice: Any) -> None:
    for seed in range(3):
        completion = sdk.chat.completions.parse(
            **ASKED, tools=[openai.pydantic_function_tool(GetWeather)], tool_choice=tool_choice, seed=seed
        )
        for call in completion.choices[0].message.tool_calls or ():
            assert isinstance(call.function.parsed_arguments, GetWeather)
        assert completion.choices[0].message.tool_calls


@pytest.mark.slow
def test_parse_of_the_sdk_by_the_tiny_model(tiny: OpenAI) -> None:
    completion = tiny.chat.completions.parse(
        model="phi-3-tiny", messages=QUESTION, temperature=0, tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required", parallel_tool_calls=False, max_tokens=300,
    )  # fmt: skip
    calls = completion.choices[0].message.tool_calls or []
    assert len(calls) == 1
    for call in calls:
        assert isinstance(call.function.parsed_arguments, GetWeather)


def test_tools_beside_a_format(sdk: OpenAI) -> None:
    """The answer is a call or in the format; both are always valid."""
    tools = [openai.pydantic_function_tool(GetWeather)]
    for seed in range(4):
        completion = sdk.chat.completions.parse(**ASKED, tools=tools, response_format=Report, seed=seed)
        message = completion.choices[0].message
        assert bool(message.parsed) != bool(message.tool_calls)
        assert isinstance(message.parsed or Report(mood=Unit.CELSIUS), Report)
    forced: Any = sdk.chat.completions.parse(
        **ASKED, tools=tools, response_format=Report, tool_choice="required", seed=0
    )
    assert forced.choices[0].message.tool_calls
    warnings = ["`response_format` has no effect: it is for an answer in words, and a call is forced."]
    assert forced.model_extra["warnings"] == warnings
    asked: Any = {
        **ASKED,
        "tools": TOOLS,
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "seed": 0,
    }
    *_, last = sdk.chat.completions.create(**asked, stream=True)
    assert last.model_extra
    assert last.model_extra["warnings"] == warnings
    never = sdk.chat.completions.parse(**ASKED, tools=tools, response_format=Report, tool_choice="none", seed=0)
    assert isinstance(never.choices[0].message.parsed, Report)


def test_auto_offers_the_tools_in_the_system_message(client: TestClient) -> None:
    offered = prompt(client, tools=TOOLS)
    assert offered.startswith(
        '<|system|>\nYou can call these tools:\n{"name": "get_weather", "description": "The weather'
    )
    assert '[{"name": "NAME", "arguments": {...}}]' in offered
    assert "If no tool helps, answer in plain words.<|end|>" in offered
    system = [{"role": "system", "content": "Be kind."}, *QUESTION]
    assert prompt(client, messages=system, tools=TOOLS).startswith("<|system|>\nBe kind.\n\nYou can call these tools:")
    each: list[dict[str, Any]] = [{"tools": []}, {"tools": TOOLS, "tool_choice": "none"}, {"tool_choice": "auto"}]
    for nothing in each:
        assert prompt(client, **nothing) == prompt(client)
    assert "and nothing else" in prompt(client, tools=TOOLS, tool_choice="required")
    assert "one call" in prompt(client, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)


def test_auto_without_a_call_is_the_answer_in_words(sdk: OpenAI) -> None:
    asked: Any = {**ASKED, "max_tokens": 80, "temperature": 0, "tools": [TOOLS[0], TOOLS[2]]}
    plain = sdk.chat.completions.create(**asked).choices[0]
    assert plain.message.tool_calls is None
    assert plain.message.content
    assert plain.finish_reason == "length"
    chunks = list(sdk.chat.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == plain.message.content
    assert sum(bool(c.choices[0].delta.content) for c in chunks) > 1
    stopped = sdk.chat.completions.create(**asked, stop=plain.message.content[5:8]).choices[0]
    assert stopped.message.content == plain.message.content[: plain.message.content.index(plain.message.content[5:8])]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (ROME, [["get_weather", '{"city": "Rome", "unit": "celsius"}']]),
        ('[{"name": "get_time", "arguments": {}}, {"name": "get_time", "arguments": {}}]', [["get_time", "{}"]] * 2),
        ('```json\n{"name": "get_time", "arguments": {}}\n```', [["get_time", "{}"]]),
        ("It is sunny.", []),
        ('[{"name": "get_rain", "arguments": {}}]', []),
        (f"{ROME[:-1]}, 5]", []),
    ],
)
def test_auto_takes_an_answer_that_is_a_call_in_full(
    sdk: OpenAI, client: TestClient, text: str, calls: list[list[str]], is_strict: bool, stream: bool
) -> None:
    tools: Any = [{"type": "function", "function": {**f, "strict": is_strict}} for f in FUNCTIONS]
    asked: Any = {**ASKED, "tools": tools, "extra_body": saying(client, text)}
    if stream:
        with sdk.chat.completions.stream(**asked) as streamed:
            choice: Any = streamed.get_final_completion().choices[0]
    else:
        choice = sdk.chat.completions.create(**asked).choices[0]
    if is_strict and text.endswith("5]"):  # the grammar has made a call of it
        assert choice.finish_reason in ("tool_calls", "length")
        return
    message = choice.message
    assert [[c.function.name, c.function.arguments] for c in message.tool_calls or ()] == calls
    assert message.content == (None if calls else text)
    assert choice.finish_reason == ("tool_calls" if calls else "stop")


def test_one_call_of_an_answer_in_auto(sdk: OpenAI, client: TestClient) -> None:
    two = '[{"name": "get_time", "arguments": {}}, {"name": "get_time", "arguments": {}}]'
    asked: Any = {**ASKED, "tools": TOOLS[2:], "extra_body": saying(client, two)}
    each: list[tuple[Any, int]] = [({"parallel_tool_calls": False}, 1), ({}, 2)]
    for fields, number in each:
        assert len(sdk.chat.completions.create(**asked, **fields).choices[0].message.tool_calls or ()) == number


def test_arguments_of_strict_tools_are_valid_in_auto(sdk: OpenAI, client: TestClient) -> None:
    """The model wants to give a number where the schema has a text."""
    wrong = '[{"name": "get_weather", "arguments": {"city": 5, "unit": "kelvin"}}]'
    asked: Any = {**ASKED, "extra_body": saying(client, wrong)}
    strict: Any = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    assert check(sdk.chat.completions.create(**asked, tools=strict).choices[0].message.tool_calls)
    loose = sdk.chat.completions.create(**asked, tools=TOOLS[:1]).choices[0].message
    assert loose.tool_calls
    call = loose.tool_calls[0]
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": 5, "unit": "kelvin"}


def test_strict_tools_in_auto_allow_any_other_text(sdk: OpenAI) -> None:
    asked: Any = {**ASKED, "max_tokens": 60, "seed": 3, "tools": TOOLS}
    (choice,) = sdk.chat.completions.create(**asked).choices
    assert choice.message.content
    warned = sdk.chat.completions.create(**asked, stop="x")
    assert warned.model_extra
    assert warned.model_extra["warnings"] == [
        "`stop` has no effect with `tools`: the answer ends where it is complete."
    ]


@pytest.mark.parametrize("tool_choice", ["required", NAMED], ids=str)
@pytest.mark.parametrize("more", [{"temperature": 0}, {"seed": 1, "n": 2}, {"extra_body": {"num_beams": 2}}], ids=str)
def test_a_minimum_length_ends_no_forced_call_in_an_error(sdk: OpenAI, tool_choice: Any, more: Any) -> None:
    extra = {**more.get("extra_body", {}), "min_tokens": 880}
    asked: Any = {**ASKED, **more, "tools": TOOLS[1:], "tool_choice": tool_choice, "extra_body": extra}
    for choice in sdk.chat.completions.create(**asked).choices:
        assert check(choice.message.tool_calls)
    chunks = [c for chunk in sdk.chat.completions.create(**asked, stream=True) for c in chunk.choices]
    assert {c.finish_reason for c in chunks if c.finish_reason} == {
        "tool_calls" if tool_choice == "required" else "stop"
    }


@pytest.mark.parametrize("kind", [["object", "null"], ["null", "object"], ["object"]], ids=str)
def test_a_schema_that_also_allows_null_gets_an_object(sdk: OpenAI, client: TestClient, kind: list[str]) -> None:
    tool: Any = {"type": "function", "function": {"name": "add", "parameters": {**SUM, "type": kind}}}
    forced = sdk.chat.completions.create(**ASKED, tools=[tool], tool_choice="required", seed=1)
    assert set(check(forced.choices[0].message.tool_calls)) == {"add"}
    strict: Any = {**tool, "function": {**tool["function"], "strict": True}}
    null = saying(client, '[{"name": "add", "arguments": null}]')
    free: Any = sdk.chat.completions.create(**ASKED, tools=[strict], extra_body=null)
    assert check(free.choices[0].message.tool_calls)


def test_a_prompt_that_is_too_long_says_what_the_tools_take(client: TestClient) -> None:
    many = [
        {"type": "function", "function": {**WEATHER, "name": f"f{number}", "description": "Of a city. " * 9}}
        for number in range(128)
    ]
    tools = many[:60]
    body = {"model": "tested", "messages": QUESTION, "tools": tools}
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    found = re.fullmatch(
        r"The prompt has (\d+) tokens, but this model's context holds 2048, answer included\. "
        r"`tools` takes (\d+) tokens of the prompt\.",
        error["message"],
    )
    assert found, error
    without = client.post("/tokenize", json={"messages": [{"role": "system", "content": ""}, *QUESTION]}).json()[
        "count"
    ]
    assert 0 <= int(found[1]) - int(found[2]) - without <= 3  # tokens at the seams
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    error = client.post("/v1/chat/completions", json={**body, "tools": many}).json()["error"]["message"]
    assert re.search(r"has at least \d+ tokens, but .* `tools` takes at least \d+ tokens of the prompt\.$", error)
    older = {"model": "tested", "messages": QUESTION, "functions": [tool["function"] for tool in tools]}
    assert "`functions` takes" in client.post("/v1/chat/completions", json=older).json()["error"]["message"]
    alone = {"model": "tested", "messages": [{"role": "user", "content": "word " * 5000}]}
    error = client.post("/v1/chat/completions", json=alone).json()["error"]
    assert error["message"].endswith("answer included.")
    assert error["code"] == "context_length_exceeded"


def test_the_older_form(sdk: OpenAI, client: TestClient) -> None:
    named: Any = {"name": "get_weather"}
    asked: Any = {**ASKED, "functions": FUNCTIONS[:1], "function_call": named}
    for seed in range(3):
        (choice,) = sdk.chat.completions.create(**asked, seed=seed).choices
        assert choice.message.tool_calls is None
        assert choice.message.function_call
        assert choice.message.function_call.name == "get_weather"
        jsonschema.validate(json.loads(choice.message.function_call.arguments), CITY)
        assert (choice.finish_reason, choice.message.content) == ("stop", None)
    deltas = [c.choices[0].delta.function_call for c in sdk.chat.completions.create(**asked, seed=2, stream=True)]
    assert "".join(d.arguments or "" for d in deltas if d) == choice.message.function_call.arguments
    assert [d.name for d in deltas if d and d.name] == ["get_weather"]
    assert prompt(client, functions=FUNCTIONS[:1]) == prompt(client, tools=TOOLS[:1], parallel_tool_calls=False)


def test_earlier_calls_and_results_are_turns(client: TestClient) -> None:
    second = {**CALL, "id": "call_2", "function": {"name": "add", "arguments": {"terms": [1]}}}
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALL, {**second, "index": 1}]},
        {"role": "tool", "tool_call_id": "call_2", "content": "1"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": "Sunny.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "user", "content": "Sure?"},
    ]
    calls = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "add", "arguments": {"terms": [1]}}]'
    assert prompt(client, messages=messages) == prompt(
        client,
        messages=[
            *QUESTION,
            {"role": "assistant", "content": calls},
            {"role": "user", "content": "Result of add:\n1\n\nResult of get_weather:\nsunny"},
            {"role": "assistant", "content": 'Sunny.\n\n[{"name": "get_weather", "arguments": {"city": "Rome"}}]'},
            {"role": "user", "content": "Result of get_weather:\nrain"},
            {"role": "user", "content": "Sure?"},
        ],
    )
    older = [
        *QUESTION,
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]
    newer = [
        *QUESTION,
        {"role": "assistant", "tool_calls": [CALL], "content": ""},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert prompt(client, messages=older) == prompt(client, messages=newer)


def test_an_assistants_turn_may_leave_content_out(client: TestClient) -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    turn = {"role": "assistant", "tool_calls": [CALL]}
    without, null = [*QUESTION, turn, result], [*QUESTION, {**turn, "content": None}, result]
    assert prompt(client, messages=without) == prompt(client, messages=null)


def test_a_required_property_that_the_schema_does_not_name(sdk: OpenAI) -> None:
    function: Any = {"name": "f", "parameters": {"type": "object", "properties": {}, "required": ["a"]}}
    answer = sdk.chat.completions.create(
        **{**ASKED, "max_tokens": 30}, tools=[{"type": "function", "function": function}], tool_choice="required"
    )
    assert answer.choices[0].finish_reason in ("length", "tool_calls")


@pytest.mark.slow
@pytest.mark.parametrize("more", [{"seed": 1}, {"extra_body": {"num_beams": 3}}], ids=str)
def test_the_sdk_reads_a_stream_of_several_answers(sdk: OpenAI, more: dict[str, Any]) -> None:
    asked: Any = {**ASKED, "tools": TOOLS, "tool_choice": "required", "n": 3, **more}
    for _ in range(5):
        with sdk.chat.completions.stream(**asked) as stream:
            first = next(event.chunk.choices[0].index for event in stream if event.type == "chunk")
            answers = stream.get_final_completion().choices
        assert first == 0
        assert [answer.index for answer in answers] == [0, 1, 2]
        for answer in answers:
            assert check(answer.message.tool_calls)


def test_an_answer_cut_before_its_call_is_an_empty_text(sdk: OpenAI) -> None:
    asked: Any = {**ASKED, "tools": TOOLS, "tool_choice": "required", "max_tokens": 2}
    chunks = [chunk.choices[0] for chunk in sdk.chat.completions.create(**asked, stream=True)]
    assert [chunk.delta.content for chunk in chunks] == [None, ""]
    (plain,) = sdk.chat.completions.create(**asked).choices
    assert (plain.message.content, plain.finish_reason, chunks[-1].finish_reason) == ("", "length", "length")


def test_a_whole_conversation_with_the_sdk(sdk: OpenAI) -> None:
    messages = list(QUESTION)
    first = sdk.chat.completions.parse(
        **ASKED, tools=[openai.pydantic_function_tool(GetWeather)], tool_choice="required", seed=1
    )
    messages.append(first.choices[0].message.model_dump(mode="json", exclude_none=True))  # without content
    for call in first.choices[0].message.tool_calls or ():
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    answer = sdk.chat.completions.create(
        model="tested", messages=messages, max_tokens=12, temperature=0, tools=TOOLS[:1]
    )
    assert answer.choices[0].message.content


BAD_SCHEMA = {"type": "object", "properties": {"a": {"not": {}}}}
LOOSE_AND_BAD = {"type": "function", "function": {"name": "loose", "parameters": BAD_SCHEMA}}


def bad(**function: Any) -> dict[str, Any]:
    return {"tools": [TOOLS[0], {"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        (bad(name="a b"), "tools.1.function.name", "`tools.1.function.name` is 'a b'; a name has 1 to 128 letters"),
        (bad(name=""), "tools.1.function.name", "a name has 1 to 128 letters"),
        (bad(name="get_weather"), "tools.1.function.name", "is get_weather, the name of an earlier tool"),
        (bad(name="x", parameters={"type": "array"}), "tools.1.function.parameters.type", "the arguments of a call are an object"),
        (bad(name="x", parametres={}), "tools.1.function.parametres", "not permitted"),
        (bad(description="x"), "tools.1.function.name", "required"),
        ({**bad(name="x", parameters=BAD_SCHEMA), "tool_choice": "required"}, "tools.1.function.parameters.properties.a", "`tools.1.function.parameters.properties.a` cannot be compiled: Unimplemented keys"),
        (bad(name="x", parameters=BAD_SCHEMA, strict=True), "tools.1.function.parameters.properties.a", "cannot be compiled: Unimplemented keys"),
        ({"tools": [LOOSE_AND_BAD, *bad(name="x", parameters=BAD_SCHEMA, strict=True)["tools"]]}, "tools.2.function.parameters.properties.a", "cannot be compiled"),
        (bad(name="x", parameters={"type": "strng"}), "tools.1.function.parameters.type", "`tools.1.function.parameters.type` is 'strng'; the arguments of a call are an object"),
        (bad(name="x", parameters={"type": ["string", "null"]}), "tools.1.function.parameters.type", "the arguments of a call are an object"),
        (bad(name="x", parameters={"minProperties": 4}, strict=True), "tools.1.function.parameters", "`tools.1.function.parameters` cannot be compiled: `minProperties` is 4"),
        (bad(name="x", parameters={"properties": {"a": {"items": {"minProperties": 4}}}}, strict=True), "tools.1.function.parameters.properties.a.items", "cannot be compiled: `minProperties` is 4"),
        ({"tools": [{"type": "web_search"}]}, "tools.0", "Tools of type web_search are not offered: this server runs no tools itself"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0", "Tools of type custom are not offered"),
        ({"tools": TOOLS * 43}, "tools", "128"),
        ({"tool_choice": "required"}, "tool_choice", "no tools are given"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "ad"}}}, "tool_choice", "names 'ad', which is not a tool of this request; did you mean add?"),
        ({"tools": TOOLS, "functions": FUNCTIONS}, "functions", "exclude each other"),
        ({"function_call": {"name": "x"}}, "function_call", "no `functions` are given"),
        ({"functions": FUNCTIONS, "function_call": {"name": "x"}}, "function_call", "not a tool"),
        ({"functions": FUNCTIONS, "tool_choice": "required"}, "tool_choice", "with `functions` send `function_call`"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Only an assistant's content may be null"),
        ({"messages": [*QUESTION, {"role": "tool", "tool_call_id": "c"}]}, "messages.1.content", "Only an assistant's content may be null"),
        ({"functions": [{"name": "x", "parameters": BAD_SCHEMA}], "function_call": {"name": "x"}}, "functions.0.parameters.properties.a", "`functions.0.parameters.properties.a` cannot be compiled"),
        ({"tools": TOOLS[:1], "guided_regex": "a"}, "guided_regex", "`tools` and `guided_regex` exclude each other"),
        ({"tools": TOOLS[:1], "json_schema": {"type": "array"}}, "json_schema", "must be of an object"),
        ({"messages": [*QUESTION, {"role": "tool", "tool_call_id": "c", "content": "x"}]}, "messages.1.tool_call_id", "is 'c'; it must be the id of a call in an earlier message"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x"}]}, "messages.1.tool_call_id", "is missing"),
        ({"messages": [*QUESTION, {"role": "function", "content": "x"}]}, "messages.1.name", "is missing; it must be the name of the tool"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "only an assistant has called tools"),
        ({"messages": [{"role": "user", "content": "x", "function_call": {"name": "f"}}]}, "messages.0.function_call", "only an assistant has called tools"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(client: TestClient, fields: dict[str, Any], param: str, text: str) -> None:
    answer = client.post("/v1/chat/completions", json={**ASKED, "max_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert text in error["message"]
    assert error["param"] == param


def test_a_deep_schema_is_refused(client: TestClient) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    answer = client.post("/v1/chat/completions", json={**ASKED, **bad(name="x", parameters=deep)})
    assert "`tools.1.function.parameters` is nested more than 128 levels deep" in answer.json()["error"]["message"]


def test_other_paths_say_where_tools_are(client: TestClient) -> None:
    for path, body in (("/v1/completions", {"model": "tested", "prompt": "x"}), ("/chat", {"prompt": "x"})):
        answer = client.post(path, json={**body, "tools": TOOLS})
        assert "tools are offered by /v1/chat/completions, " in answer.text
