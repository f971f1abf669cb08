"""`/tokenize`, `/detokenize` and `/apply-template` beside the tokenizer of transformers, in the forms of vLLM and llama.cpp.

The assertions of vLLM's tests/entrypoints/openai/test_tokenization.py and of llama.cpp's
tools/server/tests/unit/test_tokenize.py are among these.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.config.app import AppConfig
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import ModelUnavailable
from phi3_serve.parameters import MAX_TOKENS_LISTED
from tests.support import LocalBackend

TEXTS = [
    "What is the capital of France ?",
    "",
    " two  spaces",
    "unicode 媽 and emoji 🤗",
    "<|user|> Hi<|end|>\n<|assistant|>",
]
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi <|end|> there!"},
    {"role": "assistant", "content": "Nice to meet you!"},
    {"role": "user", "content": [{"type": "text", "text": "Can I ask"}, {"type": "text", "text": " a question?"}]},
]
PLAIN = [{**message, "content": message["content"].replace("<|end|>", "")} for message in MESSAGES[:3]]
ENDLESS_TEXT = "castle " * 500_000
PATHS: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/apply-template": {"messages": MESSAGES},
}


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


def call(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, **body: Any) -> tuple[str, str | None]:
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    return error["message"], error["param"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_ids_of_transformers_and_comes_back(client: TestClient, reference: Any, text: str) -> None:
    for adds in (True, False):
        expected = reference.encode(text, add_special_tokens=adds)
        found = call(client, "/tokenize", model="tested", prompt=text, add_special_tokens=adds)
        assert found == {"count": len(expected), "max_model_len": 2048, "tokens": expected}
        assert call(client, "/tokenize", content=text, add_special=adds)["tokens"] == expected
    back = call(client, "/detokenize", model="tested", tokens=expected)
    assert back == {"prompt": reference.decode(expected), "content": reference.decode(expected)}


def test_a_conversation_has_the_ids_of_an_answer(client: TestClient, reference: Any) -> None:
    for adds_generation_prompt in (True, False):
        options = {"add_generation_prompt": adds_generation_prompt}
        found = call(client, "/tokenize", messages=PLAIN, **options)
        assert found["tokens"] == reference.apply_chat_template(PLAIN, **options)["input_ids"]
        text = call(client, "/apply-template", messages=PLAIN, **options)["prompt"]
        assert text == reference.apply_chat_template(PLAIN, tokenize=False, **options)
        assert call(client, "/tokenize", prompt=text, add_special_tokens=False)["tokens"] == found["tokens"]
    counted = call(client, "/tokenize", messages=MESSAGES)["count"]
    answer = client.post("/v1/chat/completions", json={"model": "tested", "messages": MESSAGES, "max_tokens": 1}).json()
    assert counted == answer["usage"]["prompt_tokens"]


def test_text_of_users_is_no_control_token(client: TestClient, reference: Any) -> None:
    end = reference.convert_tokens_to_ids("<|end|>")
    question = [{"role": "user", "content": "a<|end|>b"}]
    assert call(client, "/tokenize", messages=question)["tokens"].count(end) == 1
    assert end in call(client, "/tokenize", content="a<|end|>b")["tokens"]
    as_text = call(client, "/tokenize", content="a<|end|>b", parse_special=False)["tokens"]
    assert end not in as_text
    assert call(client, "/detokenize", tokens=as_text)["content"] == "a<|end|>b"


def test_names_of_tokens_as_vllm_has_them(client: TestClient, reference: Any) -> None:
    for text in TEXTS:
        found = call(client, "/tokenize", prompt=text, return_token_strs=True)
        assert found["token_strs"] == reference.convert_ids_to_tokens(found["tokens"])
    assert "token_strs" not in call(client, "/tokenize", prompt="a")


def test_pieces_as_llama_cpp_has_them(client: TestClient, reference: Any) -> None:
    text = "unicode 媽 and emoji 🤗<|end|>"
    found = call(client, "/tokenize", content=text, with_pieces=True)
    assert [token["id"] for token in found["tokens"]] == reference.encode(text, add_special_tokens=False)
    pieces = [token["piece"] for token in found["tokens"]]
    assert any(isinstance(piece, list) for piece in pieces)  # a byte of 媽 alone is no text
    joined = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert joined.decode().strip() == text
    assert call(client, "/tokenize", content="", with_pieces=True)["tokens"] == []


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        ("/tokenize", {}, "Send `prompt`, `content` or `messages`", "prompt"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "`prompt` and `content` exclude each other", "content"),
        ("/tokenize", {"content": "a", "messages": MESSAGES}, "`content` and `messages` exclude each other", "messages"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": True, "add_special": False}, "different values", "add_special"),
        ("/tokenize", {"prompt": "\ud800"}, "half of a surrogate pair", "prompt"),
        ("/tokenize", {"prompt": ENDLESS_TEXT}, "The prompt has at least", "prompt"),
        ("/tokenize", {"content": ENDLESS_TEXT, "parse_special": False}, "at most 131072 are encoded", "content"),
        ("/tokenize", {"content": " " * 4_000_000}, "at least 250000 tokens, but at most 131072 are encoded", "content"),
        ("/tokenize", {"content": "\0" * 131_072}, "has 131073 tokens, but at most 131072 are encoded", "content"),
        ("/tokenize", {"messages": [{"role": "user", "content": ENDLESS_TEXT}]}, "at most 131072 are encoded", "messages"),
        ("/apply-template", {"messages": [{"role": "user", "content": ENDLESS_TEXT}]}, "at most 131072 are encoded", "messages"),
        ("/tokenize", {"prompt": "a", "promt": "a"}, "did you mean `prompt`", "promt"),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "nothing is generated here", "temperature"),
        ("/tokenize", {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True}, "cannot both be true", "continue_final_message"),
        ("/apply-template", {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True}, "cannot both be true", "continue_final_message"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "x"}, "template of the checkpoint", "chat_template"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text only", "messages.0.content.0"),
        ("/detokenize", {"tokens": [5, 704]}, "`tokens` holds token id 704; this model's ids go from 0 to 703", "tokens"),
        ("/detokenize", {"tokens": [-1]}, "greater than or equal to 0", "tokens.0"),
        ("/detokenize", {"tokens": [True]}, "does not take true or false", "tokens.0"),
        ("/detokenize", {"tokens": [1] * (MAX_TOKENS_LISTED + 1)}, "at most 131072", "tokens"),
        ("/detokenize", {}, "required", "tokens"),
        ("/apply-template", {"messages": []}, "at least 1 item", "messages"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    backend: LocalBackend, config: AppConfig, path: str, body: dict[str, Any], message: str, param: str
) -> None:
    config = AppConfig.model_validate({**config.model_dump(), "limits": {"max_body_bytes": 10**7}})
    with TestClient(create_app(backend, config)) as client:
        text, name = refused(client, path, **body)
    assert message in text
    assert name == param


@pytest.mark.parametrize("path", PATHS)
def test_what_every_api_does_these_do_too(backend: LocalBackend, config: AppConfig, path: str) -> None:
    """Unknown models, API keys, admission, models that are loading."""

    class Loading(LocalBackend):
        num_inside = 0

        def capacity(self) -> int:
            return 1 if self.num_inside == 0 else 0

        async def tokenize(self, request: TokenizationRequest) -> Tokenization:
            assert request.options.wait_s == 3
            raise ModelUnavailable("Model tested is loading.", 7)

    auth = {"key_hashes": [hash_of("k")]}
    loading = Loading(backend.replica)
    loading.state_of = {"tested": VariantState("loading")}
    config = AppConfig.model_validate({**config.model_dump(), "auth": auth})
    with TestClient(create_app(loading, config)) as client:
        assert client.post(path, json=PATHS[path]).json()["error"]["code"] == "invalid_api_key"
        client.headers["Authorization"] = "Bearer k"
        unknown = client.post(path, json={**PATHS[path], "model": "tasted"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        later = client.post(path, json=PATHS[path], headers={"Prefer": "wait=3"})
        assert (later.status_code, later.headers["Retry-After"]) == (503, "7")
        loading.num_inside = 1
        full = client.post(path, content=b"unread")
        assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")
