"""Calls of tools in Anthropic's API, with the official SDK."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from anthropic import Anthropic, beta_tool
from starlette.testclient import TestClient

from tests.api.saying import saying

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
EMPTY: Any = {"type": "object", "properties": {}}
SCHEMAS = {"get_weather": CITY, "get_time": EMPTY}
WEATHER: Any = {"name": "get_weather", "description": "Of a city.", "input_schema": CITY}
TIME: Any = {"name": "get_time", "input_schema": EMPTY, "type": "custom"}
ASKED: Any = {"model": "tested", "messages": QUESTION, "max_tokens": 900, "tools": [WEATHER, TIME]}
DEEP: Any = {}
for _ in range(200):
    DEEP = {"a": DEEP}
TWO = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "get_time", "arguments": {}}]'


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=server_url, api_key="none", max_retries=0) as sdk:
        yield sdk


def check(message: Any) -> list[str]:
    """The names of the calls, which are all of the answer and valid."""
    assert message.stop_reason == "tool_use"
    assert message.content
    for block in message.content:
        assert block.type == "tool_use"
        assert block.id.startswith("toolu_")
        jsonschema.validate(block.input, SCHEMAS[block.name])
    assert len({block.id for block in message.content}) == len(message.content)
    return [block.name for block in message.content]


@pytest.mark.thorough
def test_forced_calls_are_always_valid(sdk: Anthropic) -> None:
    for seed in range(3):
        asked: Any = {**ASKED, "extra_body": {"seed": seed}}
        assert check(sdk.messages.create(**asked, tool_choice={"type": "any"}))
        one: Any = {"type": "any", "disable_parallel_tool_use": True}
        assert len(check(sdk.messages.create(**asked, tool_choice=one))) == 1
        named: Any = {"type": "tool", "name": "get_weather"}
        assert check(sdk.messages.create(**asked, tool_choice=named)) == ["get_weather"]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "auto"}], ids=str)
@pytest.mark.parametrize("beams", [{}, {"num_beams": 2}], ids=str)
def test_a_stream_says_the_same(sdk: Anthropic, client: TestClient, choice: Any, beams: dict[str, Any]) -> None:
    asked: Any = {**ASKED, "tool_choice": choice, "extra_body": {**saying(client, TWO), **beams}}
    plain = sdk.messages.create(**asked)
    expected = [(block.name, block.input) for block in plain.content if block.type == "tool_use"]
    assert check(plain) == ["get_weather", "get_time"]
    with sdk.messages.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    assert check(final) == check(plain)
    assert [(block.name, block.input) for block in final.content if block.type == "tool_use"] == expected
    assert final.usage.output_tokens == plain.usage.output_tokens
    events: list[Any] = list(sdk.messages.create(**asked, stream=True))
    assert [event.type for event in events if event.type.startswith("message_")] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    starts = [event for event in events if event.type == "content_block_start"]
    assert [(event.index, event.content_block.input) for event in starts] == [(0, {}), (1, {})]
    for index, (_, given) in enumerate(expected):
        of_block = [event for event in events if getattr(event, "index", None) == index]
        deltas = [event.delta for event in of_block if event.type == "content_block_delta"]
        assert {delta.type for delta in deltas} == {"input_json_delta"}
        assert json.loads("".join(delta.partial_json for delta in deltas)) == given
        assert of_block[-1].type == "content_block_stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["It is sunny.", TWO[:-1], TWO.replace("get_time", "get_rain")])
def test_auto_leaves_words_alone(sdk: Anthropic, client: TestClient, text: str, stream: bool) -> None:
    asked: Any = {**ASKED, "extra_body": saying(client, text)}
    if stream:
        with sdk.messages.stream(**asked) as streamed:
            message: Any = streamed.get_final_message()
    else:
        message = sdk.messages.create(**asked)
    (block,) = message.content
    assert (block.type, block.text, message.stop_reason) == ("text", text, "end_turn")


def test_arguments_of_strict_tools_are_valid_in_auto(sdk: Anthropic, client: TestClient) -> None:
    wrong = saying(client, '[{"name": "get_weather", "arguments": {"city": 5}}]')
    strict: Any = {**ASKED, "tools": [{**WEATHER, "strict": True}]}
    assert check(sdk.messages.create(**strict, extra_body=wrong))
    (block,) = sdk.messages.create(**ASKED, extra_body=wrong).content
    assert block.type == "tool_use"
    assert block.input == {"city": 5}


def test_none_offers_nothing(sdk: Anthropic) -> None:
    counts = [
        sdk.messages.count_tokens(model="tested", messages=QUESTION, **fields).input_tokens
        for fields in ({}, {"tools": [WEATHER], "tool_choice": {"type": "none"}}, {"tools": [WEATHER]})
    ]
    assert counts[0] == counts[1] < counts[2]
    answered = sdk.messages.create(**{**ASKED, "tools": [WEATHER], "max_tokens": 1})
    assert answered.usage.input_tokens == counts[2]


def test_a_call_without_tokens_for_its_end(sdk: Anthropic) -> None:
    asked: Any = {**ASKED, "max_tokens": 40, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    message = sdk.messages.create(**asked, extra_body={"temperature": 0})
    (block,) = message.content
    assert (message.stop_reason, block.type) == ("max_tokens", "tool_use")
    with sdk.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
        assert stream.get_final_message().stop_reason == "max_tokens"


def test_a_whole_conversation_with_the_sdk(sdk: Anthropic, client: TestClient) -> None:
    first = sdk.messages.create(**ASKED, extra_body=saying(client, TWO))
    weather, time = [block.id for block in first.content if block.type == "tool_use"]
    results: Any = [
        {"type": "tool_result", "tool_use_id": weather, "content": [{"type": "text", "text": "sunny"}]},
        {"type": "tool_result", "tool_use_id": time, "content": "no clock", "is_error": True},
        {"type": "text", "text": "Be short."},
    ]
    turns: Any = [*QUESTION, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    said = "Result of get_weather:\nsunny\n\nResult of get_time:\nError: no clock\n\nBe short."
    as_text: Any = [*QUESTION, {"role": "assistant", "content": TWO}, {"role": "user", "content": said}]
    greedy: Any = {"model": "tested", "max_tokens": 24, "extra_body": {"temperature": 0}}
    answer, expected = (sdk.messages.create(**greedy, messages=messages) for messages in (turns, as_text))
    assert answer.content == expected.content
    assert answer.usage == expected.usage


def test_the_tool_runner_goes_on_without_a_thread(sdk: Anthropic) -> None:
    """It asks for a conversation that the server holds, unless the error has the details that it reads."""

    @beta_tool
    def get_time(zone: str) -> str:
        """Get the time."""
        return "noon"

    runner = sdk.beta.messages.tool_runner(
        model="tested",
        max_tokens=200,
        messages=QUESTION,
        tools=[get_time],
        tool_choice={"type": "tool", "name": "get_time", "disable_parallel_tool_use": True},
        max_iterations=2,
    )
    first, *others = [message.stop_reason for message in runner]
    assert len(others) == (1 if first == "tool_use" else 0)  # it goes on after each whole call


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: Tools of type web_search_20250305 are not offered: this server runs no tools itself"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema: Field required"),
        ({"tools": [{**WEATHER, "input_schema": {"type": "string"}}]}, "`tools.0.input_schema.type` is 'string'; the arguments of a call are an object"),
        ({"tools": [{**WEATHER, "input_schema": {"properties": {"a": {"not": {}}}}}], "tool_choice": {"type": "any"}}, "`tools.0.input_schema.properties.a` cannot be compiled: Unimplemented keys"),
        ({"tools": [WEATHER, WEATHER]}, "`tools.1.name` is get_weather, the name of an earlier tool"),
        ({"tool_choice": {"type": "tool"}}, "needs the name of the tool"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "`tool_choice` names 'x', which is not a tool of this request"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type: "),
        ({"tools": [], "tool_choice": {"type": "any"}}, "no tools are given"),
        ({"mcp_servers": [{"name": "x"}]}, "the server runs no tools itself"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]}, "`messages.0.content.0.tool_use_id` is 'x'; it must be the id of a call in an earlier message"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}]}]}, "`messages.0.content.0` is a tool_use block in a turn of the user; an assistant has called tools"),
        ({"messages": [*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "I look."}, {"type": "tool_result", "tool_use_id": "x"}]}]}, "`messages.1.content.1` is a tool_result block in a turn of the assistant"),
        ({"messages": [*QUESTION, {"role": "user", "content": [{"type": "text", "text": "So:"}, {"type": "tool_result", "tool_use_id": "y"}]}]}, "`messages.1.content.1.tool_use_id` is 'y'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "x", "name": "f", "input": DEEP}]}]}, "`messages.0.content.1.input` is nested more than 128 levels deep"),
        ({"messages": [{"role": "user", "content": [{"type": "server_tool_use", "id": "x"}]}]}, "The server runs no tools itself"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f"}]}]}, "messages.0.content.0.input: Field required"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(client: TestClient, fields: dict[str, Any], message: str) -> None:
    answer = client.post("/v1/messages", json={**ASKED, "max_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]
