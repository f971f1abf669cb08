"""Each wrong field has one error, at its place in the body, and of the form that the client meant."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

CHAT = {"model": "tested", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"model": "tested", "prompt": "hi", "max_tokens": 2}
EITHER = "valid string; or: Input should be a valid list"


def of_content(content: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({**TEXT, "prompt": [1, 2, -3]}, "prompt.2", "greater than or equal to 0"),
        ({**TEXT, "prompt": [[1, 2], [3, -4]]}, "prompt.1.1", "greater than or equal to 0"),
        ({**TEXT, "prompt": [1, True]}, "prompt.1", "does not take true or false"),
        ({**TEXT, "prompt": [1, 2.5]}, "prompt.1", "valid integer"),
        ({**TEXT, "prompt": [1.5]}, "prompt.0", "valid string; or: Input should be a valid integer, got a number with a"),
        ({**TEXT, "prompt": [None]}, "prompt.0", "allowed: text or whole number, at least 0 or list (1 to 131072 items)"),
        ({**TEXT, "prompt": [[1.5]]}, "prompt.0.0", "valid integer"),
        ({**TEXT, "prompt": ["a", 1]}, "prompt.1", "Input should be a valid string"),
        ({**TEXT, "prompt": ["a", "\ud83d"]}, "prompt.1", "half of a surrogate pair"),
        ({**TEXT, "prompt": ["a", "b", 3]}, "prompt.2", "valid string"),
        ({**TEXT, "prompt": ["a"] * 1025}, "prompt", "at most 1024 items"),
        ({**TEXT, "prompt": "\ud83d"}, "prompt", "half of a surrogate pair"),
        ({**TEXT, "prompt": 5}, "prompt", EITHER),
        ({**TEXT, "prompt": {"a": 1}}, "prompt", EITHER),
        ({**TEXT, "stop": 5}, "stop", EITHER),
        ({**TEXT, "stop": ["a", ""]}, "stop.1", "at least 1 character"),
        ({**TEXT, "stop": "x" * 257}, "stop", "at most 256 characters"),
        ({**TEXT, "stop": ["x"] * 257}, "stop", "at most 256 items"),
        ({**TEXT, "generate_kwargs": {"eos_token_id": -1}}, "generate_kwargs.eos_token_id", "out of range; allowed: whole number, at least 0 or list"),
        ({**TEXT, "generate_kwargs": {"eos_token_id": [1, -1]}}, "generate_kwargs.eos_token_id.1", "than or equal to 0"),
        ({**TEXT, "generate_kwargs": {"early_stopping": "nevr"}}, "generate_kwargs.early_stopping", "'never'"),
        (of_content(5), "messages.0.content", EITHER),
        (of_content([{"type": "text"}]), "messages.0.content.0.text", "Field required"),
        (of_content([{"type": "txt", "text": "a"}]), "messages.0.content.0.type", "'text'"),
        (of_content([{"type": "image_url", "image_url": {"url": "data:,"}}]), "messages.0.content.0", "Pictures are not offered"),
        (of_content([{"type": "input_audio", "input_audio": {}}]), "messages.0.content.0", "Sound recordings are not offered"),
    ],
)  # fmt: skip
def test_of_a_field_with_several_forms(client: TestClient, body: dict[str, Any], param: str, text: str) -> None:
    path = "/v1/completions" if "prompt" in body else "/v1/chat/completions"
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert text in error["message"]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (
            '"seed": 1e30',
            "exceeded maximum size; allowed: whole number, at least -9223372036854775808, below 9223372036854775808",
        ),
        ('"top_k": -5', "top_k: The value is out of range; allowed: whole number, at least -1"),
        ('"max_tokens": -5', "Input should be greater than or equal to -1; allowed: whole number, at least -1"),
        ('"n_predict": -5', "The value is out of range; allowed: whole number, at least 1 or `-2`, `-1`"),
        ('"format": 5', "format: The value has the wrong type; allowed: object or text"),
        ('"logit_bias": 5', "This must be a JSON object; allowed: object (0 to 1024 items) of number"),
    ],
)
def test_all_that_is_allowed_follows_the_problem(client: TestClient, sent: str, message: str) -> None:
    body = f'{{"model": "tested", "prompt": "hi", {sent}}}'
    answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("length", [-5, 0])
def test_a_bound_of_one_form_is_not_named_beside_the_other_form(client: TestClient, length: int) -> None:
    body = {**CHAT, "max_tokens": length}
    message = client.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert message == "max_tokens: The value is out of range; allowed: whole number, at least 1 or `-1`"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/tokenize"])
def test_a_body_that_is_not_json_is_no_field(client: TestClient, path: str) -> None:
    answer = client.post(path, content="{'model': 1}", headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert answer.status_code == 400
    assert message.startswith("The body is not JSON at character 1: ")
    assert isinstance(error, str) or error.get("param") is None


@pytest.mark.parametrize(
    ("field", "value", "place", "names"),
    [
        ("adapters", ["poet"], "adapters.0", "name, strength"),
        ("stream_options", True, "stream_options", "include_usage, continuous_usage_stats, include_obfuscation"),
        ("tools", ["f"], "tools.0", "type, function, cache_control"),
        ("messages", ["Hi"], "messages.0", "role, content, name, tool_calls and others"),
    ],
)
def test_what_must_be_an_object_has_its_fields_named(
    client: TestClient, field: str, value: Any, place: str, names: str
) -> None:
    error = client.post("/v1/chat/completions", json={**CHAT, field: value}).json()["error"]
    assert error["param"] == place
    assert error["message"] == f"{place}: This must be a JSON object; its fields are {names}."


def test_kaito_lists_each_wrong_field_once(client: TestClient) -> None:
    kwargs = {"eos_token_id": [1, -1], "stop_strings": 5, "top_p": 2}
    detail = client.post("/chat", json={"prompt": 5, "generate_kwargs": kwargs}).json()["detail"]
    assert {tuple(error["loc"]) for error in detail} == {
        ("body", "prompt"),
        ("body", "generate_kwargs", "eos_token_id", 1),
        ("body", "generate_kwargs", "stop_strings"),
        ("body", "generate_kwargs", "top_p"),
    }
    assert len(detail) == 4


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("content_type", ["text/json", "application/jsonl", "application/x-json", "json", "text/plain"])
def test_a_media_type_that_is_not_json_is_named(client: TestClient, path: str, content_type: str) -> None:
    answer = client.post(path, content=json.dumps(CHAT), headers={"Content-Type": content_type})
    assert f"The Content-Type header must be application/json; it is {content_type}." in answer.text


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"]
)
def test_a_media_type_that_is_json_is_read(client: TestClient, content_type: str) -> None:
    answer = client.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"Content-Type": content_type})
    assert answer.status_code == 200
    assert "JSON object" in client.post("/chat", content="[]", headers={"Content-Type": content_type}).text
