"""Odd tools, choices and calls, drawn at random, on every API: each request is answered or refused."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

NUM_CASES = 60  # for each API
DEEP: Any = {}
for _ in range(200):
    DEEP = {"items": DEEP}
SCHEMAS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["a"]},
    {"type": "object"},
    {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"enum": ["é", '"', "\\"]}}},
    {"properties": {"a": {"not": {}}}},
    {"properties": {"a": {"minimum": float("nan")}}},
    {"properties": {"\ud800": {}}},
    {"$ref": "#/nowhere"},
    {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"b": {"type": "boolean"}}}]},
    {"type": "string"},
    DEEP,
    {},
    None,
    5,
]
NAMES: list[Any] = ["f", "g", "f", "get.it-x:y", "a b", "", "x" * 200, "\ud800", None, 7]
CHOICES: list[Any] = [None, None, "auto", "none", "required", "any", {}, [], 3]
ARGUMENTS: list[Any] = ["{}", '{"a": 1}', "", "not json", {"a": float("inf")}, {"a": DEEP}, {"a": "\ud800"}, None, [1]]

Body = dict[str, Any]


class Draw(random.Random):
    """Most values are good ones, so that some requests are."""

    def mostly(self, values: list[Any], num_good: int = 2) -> Any:
        return self.choice(values[:num_good] if self.random() < 0.9 else values)


def function(draw: Draw, key: str) -> Body:
    found = {
        "name": draw.mostly(NAMES),
        key: draw.mostly(SCHEMAS),
        "description": draw.mostly([None, "It is.", "\ud800", 5]),
    }
    return {name: value for name, value in found.items() if value is not None or draw.random() < 0.5}


def openai(draw: Draw) -> Body:
    tools = [{"type": "function", "function": function(draw, "parameters")} for _ in range(draw.randint(0, 2))]
    named = {"type": "function", "function": {"name": draw.mostly(NAMES)}}
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": draw.mostly(["auto", "required", 1]), "tools": [named]},
    }
    call = {"id": "c", "function": {"name": draw.mostly(NAMES), "arguments": draw.mostly(ARGUMENTS)}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": draw.mostly(["assistant", "user"], 1), "content": draw.choice([None, "x"]), "tool_calls": [call]},
        {"role": "tool", "tool_call_id": draw.mostly(["c", "d"], 1), "content": draw.mostly(["x", None, []], 1)},
    ]
    return {
        "messages": messages[: draw.randint(1, 3)],
        draw.choice(["tools", "functions"]): tools,
        draw.choice(["tool_choice", "function_call"]): draw.mostly([*CHOICES, named, allowed], 4),
        "max_tokens": 12,
    }


def responses(draw: Draw) -> Body:
    tools = [
        {"type": draw.mostly(["function", "web_search"], 1), **function(draw, "parameters")}
        for _ in range(draw.randint(0, 2))
    ]
    named = {"type": "function", "name": draw.mostly(NAMES)}
    items: list[Any] = [
        {"role": "user", "content": "hi"},
        {"type": "function_call", "call_id": "c", "name": draw.mostly(NAMES), "arguments": draw.mostly(ARGUMENTS)},
        {"type": "function_call_output", "call_id": draw.mostly(["c", "d"], 1), "output": draw.mostly(["x", [], None])},
    ]
    choice = draw.mostly([*CHOICES, named, {"type": "allowed_tools", "mode": "auto", "tools": [named]}])
    return {"input": items[: draw.randint(1, 3)], "tools": tools, "tool_choice": choice, "max_output_tokens": 12}


def anthropic(draw: Draw) -> Body:
    blocks: list[Any] = [
        {"type": "tool_use", "id": "c", "name": draw.mostly(NAMES), "input": draw.mostly([{}, {"a": 1}, *ARGUMENTS])},
        {"type": "tool_result", "tool_use_id": draw.mostly(["c", "d"], 1), "content": draw.mostly(["x", [], None, 5])},
    ]
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": blocks[:1]},
        {"role": "user", "content": blocks[1:]},
    ]
    choice = draw.mostly([*CHOICES, {"type": "any"}, {"type": "auto"}, {"type": "tool", "name": draw.mostly(NAMES)}])
    tools = [function(draw, "input_schema") for _ in range(draw.randint(0, 2))]
    return {"messages": messages[: draw.randint(1, 3)], "tools": tools, "tool_choice": choice, "max_tokens": 12}


def ollama(draw: Draw) -> Body:
    body = openai(draw)
    body.pop("functions", None)
    body.pop("function_call", None)
    return body


APIS: dict[str, Callable[[Draw], Body]] = {
    "/v1/chat/completions": openai,
    "/v1/responses": responses,
    "/v1/messages": anthropic,
    "/api/chat": ollama,
}


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", *(pytest.param(path, marks=pytest.mark.thorough) for path in list(APIS)[1:])]
)
def test_odd_tools_are_answered_or_refused(client: TestClient, path: str) -> None:
    draw = Draw(0)
    counts: Counter[int] = Counter()
    for _ in range(NUM_CASES):
        body = {"model": "tested", **APIS[path](draw), "stream": draw.random() < 0.3}
        if draw.random() < 0.3:
            minimum = {"min_tokens": draw.randint(0, 12)}
            body |= {"options": minimum} if path == "/api/chat" else minimum
        sent = json.dumps(body)
        answer = client.post(path, content=sent, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400), (answer.text, sent)
        if answer.status_code == 400:
            told = answer.json()["error"]
            assert told if isinstance(told, str) else told["message"]
        else:
            assert "event: error" not in answer.text
            assert "response.failed" not in answer.text
        counts[answer.status_code] += 1
    assert min(counts[200], counts[400]) > NUM_CASES / 20, counts
