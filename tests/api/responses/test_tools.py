"""Calls of tools and formats of text in `/v1/responses`, with OpenAI's official SDK."""

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from tests.api.saying import saying

TEXT = "What is the weather in Rome?"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": CITY, "get_time": {"type": "object", "properties": {}}}
WEATHER: Any = {"type": "function", "name": "get_weather", "description": "Of a city.", "parameters": CITY}
TIME: Any = {"type": "function", "name": "get_time", "parameters": None, "strict": False}
ASKED: Any = {"model": "tested", "input": TEXT, "max_output_tokens": 900}
TWO = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "get_time", "arguments": {}}]'
OF_CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def check(response: Any) -> list[str]:
    """The names of the calls, which are all of the answer and valid."""
    assert response.output
    for item in response.output:
        assert (item.type, item.status) == ("function_call", "completed")
        assert item.id.startswith("fc_")
        assert item.call_id.startswith("call_")
        jsonschema.validate(json.loads(item.arguments), SCHEMAS[item.name])
    assert response.status == "completed"
    assert response.output_text == ""
    return [item.name for item in response.output]


@pytest.mark.thorough
def test_forced_calls_are_always_valid(sdk: OpenAI) -> None:
    named: Any = {"type": "function", "name": "get_weather"}
    for seed in range(3):
        asked: Any = {**ASKED, "tools": [WEATHER, TIME], "extra_body": {"seed": seed}}
        assert check(sdk.responses.create(**asked, tool_choice="required"))
        assert len(check(sdk.responses.create(**asked, tool_choice="required", parallel_tool_calls=False))) == 1
        assert check(sdk.responses.create(**asked, tool_choice=named)) == ["get_weather"]
        allowed: Any = {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_time"}],
        }
        assert set(check(sdk.responses.create(**asked, tool_choice=allowed))) == {"get_time"}


@pytest.mark.parametrize(
    "fields", [{"tool_choice": "required"}, {}, {"tool_choice": "required", "num_beams": 2}], ids=str
)
def test_a_stream_says_the_same(sdk: OpenAI, client: TestClient, fields: dict[str, Any]) -> None:
    beams = {"num_beams": 2} if fields.pop("num_beams", None) else {}
    asked: Any = {**ASKED, "tools": [WEATHER, TIME], **fields, "extra_body": {**saying(client, TWO), **beams}}
    plain = sdk.responses.create(**asked)
    assert check(plain)
    events: list[Any] = list(sdk.responses.create(**asked, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    final = events[-1].response
    assert check(final) == check(plain)
    assert final.usage == plain.usage
    for index, item in enumerate(final.output):
        of_item = [event for event in events if getattr(event, "output_index", None) == index]
        assert list(dict.fromkeys(event.type for event in of_item)) == OF_CALL
        assert {event.item_id for event in of_item if hasattr(event, "item_id")} == {item.id}
        added = of_item[0].item
        assert (added.name, added.arguments, added.call_id, added.status) == (
            item.name,
            "",
            item.call_id,
            "in_progress",
        )
        assert "".join(e.delta for e in of_item if e.type == OF_CALL[1]) == item.arguments == of_item[-2].arguments
        assert of_item[-1].item == item
        assert item.arguments == plain.output[index].arguments
    with sdk.responses.stream(**asked) as stream:
        assert [item.name for item in stream.get_final_response().output if item.type == "function_call"] == check(
            plain
        )


def test_auto(sdk: OpenAI, client: TestClient) -> None:
    asked: Any = {**ASKED, "tools": [WEATHER, TIME]}
    assert check(sdk.responses.create(**asked, extra_body=saying(client, TWO))) == ["get_weather", "get_time"]
    one = sdk.responses.create(**asked, extra_body=saying(client, TWO), parallel_tool_calls=False)
    assert check(one) == ["get_weather"]
    for text in ("It is sunny.", TWO[:-1], TWO.replace("get_time", "get_rain")):
        for stream in (False, True):
            if stream:
                with sdk.responses.stream(**asked, extra_body=saying(client, text)) as streamed:
                    answer: Any = streamed.get_final_response()
            else:
                answer = sdk.responses.create(**asked, extra_body=saying(client, text))
            assert (answer.output_text, [item.type for item in answer.output]) == (text, ["message"])


def test_a_call_without_tokens_for_its_end(sdk: OpenAI) -> None:
    asked: Any = {**ASKED, "max_output_tokens": 40, "tools": [WEATHER], "tool_choice": "required"}
    plain = sdk.responses.create(**asked, temperature=0)
    events: list[Any] = list(sdk.responses.create(**asked, temperature=0, stream=True))
    for response in (plain, events[-1].response):
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert [item.status for item in response.output] == ["incomplete"]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].arguments == plain.output[0].arguments


def test_the_answer_repeats_the_settings(sdk: OpenAI) -> None:
    asked: Any = {**ASKED, "tools": [WEATHER, TIME], "max_output_tokens": 2, "parallel_tool_calls": False}
    answer = sdk.responses.create(**asked, tool_choice="required")
    assert [tool.name for tool in answer.tools if tool.type == "function"] == ["get_weather", "get_time"]
    assert (answer.tool_choice, answer.parallel_tool_calls) == ("required", False)


def test_a_whole_conversation_with_the_sdk(sdk: OpenAI, client: TestClient) -> None:
    first = sdk.responses.create(**ASKED, tools=[WEATHER, TIME], extra_body=saying(client, TWO))
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": result}
        for item, result in zip(first.output, ("sunny", [{"type": "input_text", "text": "noon"}]), strict=True)
        if item.type == "function_call"
    ]
    items: Any = [{"role": "user", "content": TEXT}, *first.output, *outputs]
    as_turns: Any = [
        {"role": "user", "content": TEXT},
        {"role": "assistant", "content": TWO},
        {"role": "user", "content": "Result of get_weather:\nsunny\n\nResult of get_time:\nnoon"},
    ]
    asked: Any = {"model": "tested", "temperature": 0, "max_output_tokens": 24}
    expected = sdk.responses.create(**asked, input=as_turns)
    for sent in (items, [*items[:1], *(item.model_dump() for item in first.output), *outputs]):
        assert sdk.responses.create(**asked, input=sent).output_text == expected.output_text
    counted = sdk.responses.input_tokens.count(model="tested", input=items, tools=[WEATHER])
    answered = sdk.responses.create(**asked, input=items, tools=[WEATHER])
    assert answered.usage
    assert counted.input_tokens == answered.usage.input_tokens
    assert expected.usage
    assert counted.input_tokens > expected.usage.input_tokens


class Mood(Enum):
    """Of somebody."""

    GOOD = "good"
    BAD = "bad"


class Report(BaseModel):
    """An answer."""

    title: str = Field(max_length=8)
    moods: list[Mood] = Field(max_length=2)


def test_parse_of_the_sdk(sdk: OpenAI) -> None:
    for seed in range(3):
        tool = openai.pydantic_function_tool(Report)["function"]
        flat: Any = {"type": "function", **tool}
        called = sdk.responses.parse(**ASKED, tools=[flat], tool_choice="required", extra_body={"seed": seed})
        for item in called.output:
            assert item.type == "function_call"
            Report.model_validate(item.parsed_arguments)


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "Tools of type web_search are not offered: this server runs no tools itself", "tools.0"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "Tools of type mcp are not offered", "tools.0"),
        ({"tools": [WEATHER, {**TIME, "name": "a b"}]}, "a name has 1 to 128 letters", "tools.1.name"),
        ({"tools": [{**WEATHER, "parameters": {"properties": {"a": {"not": {}}}}, "strict": True}]}, "`tools.0.parameters.properties.a` cannot be compiled: Unimplemented keys", "tools.0.parameters.properties.a"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "not a tool of this request", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "Tools of type web_search are not offered", "tool_choice"),
        ({"tool_choice": "required"}, "no tools are given", "tool_choice"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "is 'c'; it must be the id of a call", "input.0.call_id"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "x"}]}, "required", "input.0.arguments"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "The server runs no tools itself", "input.0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(client: TestClient, fields: dict[str, Any], message: str, param: str) -> None:
    answer = client.post("/v1/responses", json={**ASKED, "max_output_tokens": 2, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
