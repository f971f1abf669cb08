"""Calls of tools in ollama's API, with ollama's official client."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import ollama
import pytest
from starlette.testclient import TestClient

from tests.api.saying import saying

QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
TWO = '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "get_time", "arguments": {}}]'


def get_weather(city: str) -> str:
    """The weather.

    Args:
        city: where
    """
    return f"sunny in {city}"


TIME: Any = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=server_url) as sdk:
        yield sdk


def says(client: TestClient, text: str) -> dict[str, Any]:
    return {**saying(client, text), "repeat_penalty": 1, "num_predict": 300}


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def refused(client: TestClient, body: dict[str, Any]) -> str:
    answer = client.post("/api/chat", json={"model": "tested", "messages": QUESTION, "stream": False, **body})
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]
    return message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beams", [{}, {"num_beams": 2}], ids=str)
def test_calls(sdk: ollama.Client, client: TestClient, stream: bool, beams: dict[str, Any]) -> None:
    asked: Any = {
        "model": "tested", "messages": QUESTION, "tools": [get_weather, TIME], "options": {**says(client, TWO), **beams},
    }  # fmt: skip
    expected = [("get_weather", {"city": "Rome"}), ("get_time", {})]
    if stream:
        parts = list(sdk.chat(**asked, stream=True))
        assert [call for part in parts for call in calls_of(part.message)] == expected
        assert "".join(part.message.content or "" for part in parts) == ""
        last = parts[-1]
    else:
        last = sdk.chat(**asked)
        assert calls_of(last.message) == expected
        assert last.message.content == ""
    assert (last.done, last.done_reason) == (True, "stop")


def test_the_numbers_and_ids_of_calls(client: TestClient) -> None:
    body: Any = {"model": "tested", "messages": QUESTION, "tools": [WEATHER, TIME], "options": says(client, TWO)}
    plain = client.post("/api/chat", json={**body, "stream": False}).json()["message"]["tool_calls"]
    lines = client.post("/api/chat", json=body).text.splitlines()
    streamed = [call for line in lines for call in json_of(line)["message"].get("tool_calls", ())]
    for calls in (plain, streamed):
        assert [call["function"]["index"] for call in calls] == [0, 1]
        assert len({call["id"] for call in calls}) == 2


def json_of(line: str) -> Any:
    import json

    return json.loads(line)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["It is sunny.", TWO[:-1]])
def test_words_stay_words(sdk: ollama.Client, client: TestClient, text: str, stream: bool) -> None:
    asked: Any = {"model": "tested", "messages": QUESTION, "tools": [get_weather], "options": says(client, text)}
    parts = list(sdk.chat(**asked, stream=True)) if stream else [sdk.chat(**asked)]
    assert "".join(part.message.content or "" for part in parts) == text
    assert not any(part.message.tool_calls for part in parts)


@pytest.mark.thorough
def test_a_forced_call_is_always_valid(client: TestClient) -> None:
    for seed in range(3):
        body: Any = {
            "model": "tested",
            "messages": QUESTION,
            "tools": [WEATHER, TIME],
            "tool_choice": "required",
            "stream": False,
        }
        answer = client.post("/api/chat", json={**body, "options": {"seed": seed, "num_predict": 900}}).json()
        assert answer["done_reason"] in ("stop", "length")
        for call in answer["message"].get("tool_calls", ()):
            schema = CITY if call["function"]["name"] == "get_weather" else {"type": "object"}
            jsonschema.validate(call["function"]["arguments"], schema)
        assert answer["message"]["content"] == ""
    cut = client.post("/api/chat", json={**body, "options": {"num_predict": 8}}).json()
    assert (cut["done_reason"], cut["message"]) == ("length", {"role": "assistant", "content": ""})


def test_a_whole_conversation_with_the_client(sdk: ollama.Client, client: TestClient) -> None:
    first = sdk.chat(model="tested", messages=QUESTION, tools=[get_weather, TIME], options=says(client, TWO))
    results: list[list[dict[str, Any]]] = [
        [
            {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
            {"role": "tool", "tool_name": "get_time", "content": "noon"},
        ],
        [{"role": "tool", "content": "sunny"}, {"role": "tool", "content": "noon"}],
    ]
    said = "Result of get_weather:\nsunny\n\nResult of get_time:\nnoon"
    as_text: Any = [*QUESTION, {"role": "assistant", "content": TWO}, {"role": "user", "content": said}]
    greedy = {"temperature": 0, "num_predict": 24, "repeat_penalty": 1}
    expected = sdk.chat(model="tested", messages=as_text, options=greedy)
    for each in results:
        answer = sdk.chat(model="tested", messages=[*QUESTION, first.message, *each], options=greedy)
        assert answer.message.content == expected.message.content
        assert answer.prompt_eval_count == expected.prompt_eval_count


def test_the_older_name_of_tool_name(client: TestClient) -> None:
    calls: list[Any] = [{"function": {"name": name, "arguments": {}}} for name in ("get_weather", "get_time")]
    counts = []
    for field in ("tool_name", "name"):
        turns = [{"role": "assistant", "tool_calls": calls}, {"role": "tool", field: "get_time", "content": "noon"}]
        body = {"model": "tested", "messages": [*QUESTION, *turns], "stream": False, "options": says(client, "Yes")}
        answer = client.post("/api/chat", json=body)
        assert answer.status_code == 200, answer.text
        counts.append(answer.json()["prompt_eval_count"])
    assert counts[0] == counts[1]


def test_what_is_wrong_is_said(client: TestClient) -> None:
    assert "Tools of type web_search are not offered" in refused(client, {"tools": [{"type": "web_search"}]})
    assert "a name has 1 to 128 letters" in refused(client, {"tools": [{"function": {"name": "a b"}}]})
    assert "is missing; it must be the name of the tool" in refused(
        client, {"messages": [{"role": "tool", "content": "x"}]}
    )
    user = {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}
    assert "`messages.0.tool_calls` is in a turn of the user; only an assistant has called tools" in refused(
        client, {"messages": [user]}
    )
    bad = {"function": {"name": "x", "parameters": {"properties": {"a": {"not": {}}}}}}
    assert "`tools.0.function.parameters.properties.a` cannot be compiled" in refused(
        client, {"tools": [bad], "tool_choice": "required"}
    )
    nan = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": float("nan")}}}]}
    content = json.dumps({"model": "tested", "messages": [nan]})
    answer = client.post("/api/chat", content=content, headers={"Content-Type": "application/json"})
    assert "`messages.0.tool_calls.0.function.arguments` holds NaN" in answer.json()["error"]
    answer = client.post("/api/generate", json={"model": "tested", "prompt": "x", "tools": [WEATHER]})
    assert "tools are offered by" in answer.json()["error"]
