"""What llama.cpp's server tests assert, of phi-3-tiny. README.md says which test of llama.cpp each is."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from openai import OpenAI

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.config.app import AppConfig
from tests.support import LocalBackend

MODEL = "phi-3-tiny"
BOOK: list[Any] = [{"role": "system", "content": "Book"}, {"role": "user", "content": "What is the best book"}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0.0}
STORY = "I believe the meaning of life is"
TOOL_RESULT: Any = None


def post(url: str, path: str, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{url}{path}", json={"model": MODEL, **fields}, timeout=300)


def ask(url: str, *messages: Any, path: str = "/chat/completions", **fields: Any) -> Any:
    answer = post(url, path, messages=list(messages) or BOOK, **{"temperature": 0.0, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events_of(answer: httpx2.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


# test_chat_completion.py


@pytest.mark.parametrize(
    "content",
    ["What is the best book", [{"type": "text", "text": "What is"}, {"type": "text", "text": "the best book"}]],
)
def test_chat_completion(url: str, content: Any) -> None:
    answer = ask(url, BOOK[0], {"role": "user", "content": content}, max_tokens=8, ignore_eos=True)
    assert "cmpl" in answer["id"]
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["completion_tokens"] == 8
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] == "length"


def test_chat_completion_stream(url: str) -> None:
    chunks = events_of(post(url, "/chat/completions", messages=BOOK, max_tokens=8, ignore_eos=True, stream=True))
    first, *between, last = [chunk["choices"][0] for chunk in chunks]
    assert first["delta"]["role"] == "assistant"
    assert all("role" not in choice["delta"] for choice in (*between, last))
    assert all(choice["finish_reason"] is None for choice in (first, *between))
    assert last["finish_reason"] == "length"
    assert "content" not in last["delta"]
    assert "".join(choice["delta"]["content"] for choice in between)
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {MODEL}


def test_chat_completion_with_openai_library(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=BOOK, max_tokens=8, seed=42, temperature=0.8, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content is not None


@pytest.mark.parametrize("begun", ["Whill", [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ill"}]])
def test_chat_template_assistant_prefill(url: str, begun: Any) -> None:
    """llama.cpp continues a last message of the assistant by itself; here it is asked to, as at vLLM."""
    turns = [*BOOK, {"role": "assistant", "content": begun}]
    how: Any = {"add_generation_prompt": False, "continue_final_message": True}
    asked = ask(url, *turns, max_tokens=8, return_token_ids=True, **how)
    found = post(url, "/detokenize", tokens=asked["prompt_token_ids"]).json()["content"]
    assert found.endswith(("<|assistant|> Whill", "<|assistant|>\nWhill"))


def test_apply_chat_template(url: str) -> None:
    turns = [{"role": "system", "content": "You are a test."}, {"role": "user", "content": "Hi there"}]
    answer = post(url, "/apply-template", messages=turns)
    assert answer.status_code == 200
    assert answer.json()["prompt"] == "<|system|>\nYou are a test.<|end|>\n<|user|>\nHi there<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("generates", [False, True])
def test_add_generation_prompt(url: str, generates: bool) -> None:
    turns = [{"role": "user", "content": "What is today?"}]
    prompt = post(url, "/apply-template", messages=turns, add_generation_prompt=generates).json()["prompt"]
    assert ("<|assistant|>" in prompt) == generates


@pytest.mark.parametrize(
    ("response_format", "text"),
    [
        ({"type": "json_object", "schema": {"const": "42"}}, '"42"'),
        ({"type": "json_object", "schema": {"items": [{"type": "integer"}], "type": "array", "maxItems": 0}}, "[]"),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "foooooo"}}}, '"foooooo"'),
        ({"type": "json_object"}, "{"),
        ({"type": "sound"}, None),
        ({"type": "json_object", "schema": 123}, None),
        ({"type": "json_object", "schema": {"type": 123}}, None),
        ({"type": "json_object", "schema": {"type": "hiccup"}}, None),
    ],
)
def test_completion_with_response_format(url: str, response_format: Any, text: str | None) -> None:
    answer = post(url, "/chat/completions", messages=BOOK, max_tokens=20, response_format=response_format)
    if text is None:
        assert answer.status_code == 400
        assert "error" in answer.json()
    else:
        assert answer.json()["choices"][0]["message"]["content"].replace(" ", "").startswith(text)


def test_completion_with_json_schema(url: str) -> None:
    answer = ask(url, max_tokens=10, json_schema={"const": "42"})
    assert answer["choices"][0]["message"]["content"] == '"42"'


def test_completion_with_grammar(url: str) -> None:
    answer = ask(url, max_tokens=10, grammar='root ::= "a"{5,5}')
    assert answer["choices"][0]["message"]["content"] == "aaaaa"


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "string",
        [123],
        [{}],
        [{"role": 123}],
        [{"role": "system", "content": 123}],
        [{"role": "system", "content": "test"}, {}],
    ],
    ids=str,
)
def test_invalid_chat_completion_req(url: str, messages: Any) -> None:
    answer = post(url, "/chat/completions", messages=messages)
    assert answer.status_code == 400
    assert "error" in answer.json()


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(sdk: OpenAI, stream: bool) -> None:
    asked: Any = {**GREEDY, "messages": BOOK, "max_tokens": 5, "logprobs": True, "top_logprobs": 10}
    answer: Any = sdk.chat.completions.create(**asked, stream=stream)
    choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
    text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert "".join(token.token for token in tokens) == text
    assert text
    assert all(token.logprob <= 0 and token.bytes is not None and token.top_logprobs for token in tokens)


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_logit_bias(url: str, path: str) -> None:
    words = ["I", "the", "The", "to", "a", "is", "was", "and", "you", "he", "He", "she", "She", "it", "It"]
    tokens = post(url, "/tokenize", content=" " + " ".join(words) + " ").json()["tokens"]
    asked: dict[str, Any] = {"messages": BOOK} if path == "/chat/completions" else {"prompt": "What is the best book"}
    bias = {str(token): -100 for token in tokens}
    choice = post(url, path, **asked, temperature=0.0, max_tokens=64, logit_bias=bias).json()["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    assert text
    assert all(f" {word} " not in text for word in words)


@pytest.mark.parametrize("stream", [False, True])
def test_context_size_exceeded(url: str, stream: bool) -> None:
    answer = post(url, "/chat/completions", messages=BOOK * 200, stream=stream)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "2048" in message  # the context; llama.cpp has it in a field of its own, and the tokens of the prompt
    assert "tokens" in message


def test_chat_completions_multiple_choices(url: str) -> None:
    choices = ask(url, max_tokens=8, n=2, ignore_eos=True)["choices"]
    assert len(choices) == 2
    assert {choice["message"]["role"] for choice in choices} == {"assistant"}
    assert {choice["finish_reason"] for choice in choices} == {"length"}


# test_completion.py, test_ctx_shift.py, test_ignore_eos.py: on /v1/completions, as /completion is llama.cpp's own


def complete(url: str, prompt: Any = STORY, **fields: Any) -> Any:
    answer = post(url, "/v1/completions", prompt=prompt, **{"temperature": 0.0, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("num_tokens", [8, 64])
def test_completion(url: str, num_tokens: int) -> None:
    answer = complete(url, n_predict=num_tokens, ignore_eos=True, return_token_ids=True)
    assert answer["usage"]["completion_tokens"] == num_tokens
    (choice,) = answer["choices"]
    assert len(choice["token_ids"]) == num_tokens
    assert choice["text"]
    without = complete(url, n_predict=num_tokens)
    assert "token_ids" not in without["choices"][0]


def test_completion_stream_vs_non_stream(url: str) -> None:
    chunks = events_of(post(url, "/v1/completions", prompt=STORY, n_predict=8, temperature=0.0, stream=True))
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == complete(url, n_predict=8)["choices"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_with_openai_library(sdk: OpenAI, stream: bool) -> None:
    answer: Any = sdk.completions.create(
        model=MODEL, prompt=STORY, max_tokens=8, stream=stream, extra_body={"ignore_eos": True}
    )
    choices = [chunk.choices[0] for chunk in (answer if stream else [answer])]
    assert choices[-1].finish_reason == "length"
    assert all(choice.text is not None for choice in choices)
    assert "".join(choice.text for choice in choices)


def test_completion_stream_with_openai_library_stops(sdk: OpenAI) -> None:
    """With Phi-3.5-mini at llama.cpp; the text has none of the stop strings here either."""
    prompt = "System: You are helpfull assistant.\nAssistant:\nHey!\nUser:\nTell me a joke.\nAssistant:\n"
    chunks = sdk.completions.create(
        model=MODEL, prompt=prompt, stop=["User:\n", "Assistant:\n", "e"], max_tokens=200, stream=True
    )
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert not any(stop in text for stop in ("User:\n", "Assistant:\n", "e"))


def test_consistent_result_same_seed(url: str) -> None:
    for temperature in (0.0, 1.0):
        texts = {complete(url, seed=42, temperature=temperature)["choices"][0]["text"] for _ in range(4)}
        assert len(texts) == 1


def test_different_result_different_seed(url: str) -> None:
    asked = {"temperature": 1.5, "max_tokens": 32}
    texts = {complete(url, "Once upon a time,", seed=seed, **asked)["choices"][0]["text"] for seed in range(4)}
    assert len(texts) == 4


def test_long_input_prompt(url: str) -> None:
    answer = post(url, "/v1/completions", prompt=STORY * 400)
    assert answer.status_code == 400
    assert "context" in answer.json()["error"]["message"]


def test_completion_with_tokens_input(url: str) -> None:
    tokens = post(url, "/tokenize", content=STORY, add_special=True).json()["tokens"]
    expected = complete(url)["choices"][0]["text"]
    assert complete(url, tokens)["choices"][0]["text"] == expected
    assert [choice["text"] for choice in complete(url, [tokens, tokens])["choices"]] == [expected] * 2


def test_completion_parallel(url: str) -> None:
    """More requests at once than the batch of llama.cpp's test has slots."""
    from concurrent.futures import ThreadPoolExecutor

    prompts = ["Write a very long book.", "Write another a poem.", "What is LLM?", "The sky is blue and I love it."]
    with ThreadPoolExecutor(6) as pool:
        together = list(
            pool.map(lambda prompt: complete(url, prompt, seed=42, temperature=1.0, max_tokens=20), prompts)
        )
    alone = [complete(url, prompt, seed=42, temperature=1.0, max_tokens=20) for prompt in prompts]
    assert [each["choices"] for each in together] == [each["choices"] for each in alone]


def test_n_probs(url: str) -> None:
    """As ``logprobs``, which is OpenAI's name."""
    found = complete(url, "Once upon a time,", max_tokens=5, logprobs=10)["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == 5
    assert all(logprob <= 0 for logprob in found["token_logprobs"])
    assert all(len(each) >= 10 and all(value <= 0 for value in each.values()) for each in found["top_logprobs"])


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "num_tokens"), [(64, 64), (-1, None)])
def test_context_is_not_shifted(url: str, asked: int, num_tokens: int | None) -> None:
    answer = complete(url, "Hi how are you", n_predict=asked, ignore_eos=True)
    usage = answer["usage"]
    assert usage["completion_tokens"] == (num_tokens or 2048 - usage["prompt_tokens"])
    assert answer["choices"][0]["finish_reason"] == "length"


def test_ignore_eos(url: str) -> None:
    assert complete(url, "Once upon a time", n_predict=200, ignore_eos=True)["usage"]["completion_tokens"] == 200
    ends = complete(url, "<|user|>\nWhat is 2+2?<|end|>\n<|assistant|>\n", n_predict=200, ignore_eos=False)
    assert ends["choices"][0]["finish_reason"] == "stop"


# test_basic.py, test_tokenize.py, test_security.py


def test_server_start_simple(url: str) -> None:
    assert httpx2.get(f"{url}/health").status_code == 200


def test_server_models(url: str) -> None:
    (model,) = httpx2.get(f"{url}/models").raise_for_status().json()["data"]
    assert model["id"] == MODEL


def test_webui(url: str) -> None:
    page = httpx2.get(f"{url}/ui")
    assert page.status_code == 200
    assert "<!doctype html>" in page.text.lower()


def test_tokenize_detokenize(url: str) -> None:
    content = "What is the capital of France ?"
    tokens = post(url, "/tokenize", content=content).json()["tokens"]
    assert len(tokens) > 5
    assert post(url, "/detokenize", tokens=tokens).json()["content"].strip() == content


def test_tokenize_with_pieces(url: str) -> None:
    content = "This is a test string with unicode 媽 and emoji 🤗"
    tokens = post(url, "/tokenize", content=content, with_pieces=True).json()["tokens"]
    assert all(token["id"] > 0 and len(token["piece"]) > 0 for token in tokens)


@pytest.fixture
def locked_url(
    make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str], backend: LocalBackend, config: AppConfig
) -> str:
    keys = {"auth": {"key_hashes": [hash_of("sk-this-is-the-secret-key")]}, "http": {"cors_origins": ["http://a.fr"]}}
    return serve_app(create_app(backend, AppConfig.model_validate({**config.model_dump(), **keys})))


def test_access_public_endpoint(locked_url: str) -> None:
    for path in ("/health", "/ui"):
        assert httpx2.get(f"{locked_url}{path}").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer invalid-key"}, 401),
        ({"Authorization": "Bearer sk-this-is-the-secret-key"}, 200),
        ({"X-Api-Key": "sk-this-is-the-secret-key"}, 200),
    ],
)
def test_api_key(locked_url: str, headers: dict[str, str], status: int) -> None:
    body = {"model": "tested", "prompt": STORY, "max_tokens": 2}
    answer = httpx2.post(f"{locked_url}/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status == 401)


def test_openai_library_correct_api_key(locked_url: str) -> None:
    with OpenAI(api_key="sk-this-is-the-secret-key", base_url=locked_url, max_retries=0) as sdk:
        answer = sdk.chat.completions.create(model="tested", messages=BOOK, max_tokens=2)
    assert len(answer.choices) == 1


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Access-Control-Allow-Origin", "http://a.fr"),
        ("Access-Control-Allow-Methods", "POST"),
        ("Access-Control-Allow-Headers", "Authorization"),
    ],
)
def test_cors_options(locked_url: str, header: str, value: str) -> None:
    asked = {
        "Origin": "http://a.fr",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "Authorization",
    }
    answer = httpx2.options(f"{locked_url}/completions", headers=asked)
    assert answer.status_code == 200
    assert value in answer.headers[header]


# test_compat_oai_responses.py


@pytest.mark.parametrize(
    ("text_format", "begins"),
    [
        ({"type": "json_schema", "name": "test", "schema": {"const": "foooooo"}}, '"foooooo"'),
        ({"type": "json_object"}, "{"),
        ({"type": "text"}, ""),
        ({"type": "json_schema", "name": "test"}, None),
    ],
)
def test_responses_with_text_format(url: str, text_format: Any, begins: str | None) -> None:
    answer = post(url, "/v1/responses", input="Write an example", max_output_tokens=20, text={"format": text_format})
    if begins is None:
        assert answer.status_code == 400
        assert "error" in answer.json()
        return
    message = next(item for item in answer.json()["output"] if item["type"] == "message")
    assert message["content"][0]["text"].startswith(begins)


def test_responses_with_openai_library(sdk: OpenAI) -> None:
    answer: Any = sdk.responses.create(model=MODEL, input=BOOK, max_output_tokens=8, temperature=0.8)
    assert answer.id.startswith("resp_")
    assert answer.output[0].id.startswith("msg_")
    assert answer.output_text


def test_responses_stream_with_openai_library(sdk: OpenAI) -> None:
    events: Any = list(sdk.responses.create(model=MODEL, input=BOOK, max_output_tokens=200, temperature=0, stream=True))
    by_type = {event.type: event for event in events}
    last = by_type["response.completed"].response
    ids = {event.response.id for event in events if hasattr(event, "response")}
    assert ids == {last.id}
    assert last.id.startswith("resp_")
    assert last.output[0].id.startswith("msg_")
    assert by_type["response.output_item.added"].item.id == by_type["response.output_item.done"].item.id
    assert {event.item_id for event in events if hasattr(event, "item_id")} == {last.output[0].id}
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == last.output_text


# test_compat_anthropic.py


def message(url: str, *turns: Any, **fields: Any) -> Any:
    turns = turns or ({"role": "user", "content": "Say hello"},)
    answer = post(url, "/v1/messages", messages=list(turns), **{"max_tokens": 50, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_anthropic_messages_basic(url: str) -> None:
    answer = message(url)
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    assert answer["content"][0]["type"] == "text"
    assert isinstance(answer["content"][0]["text"], str)
    assert answer["stop_reason"] in ("end_turn", "max_tokens")
    usage = answer["usage"]
    assert all(isinstance(usage[name], int) for name in ("cache_read_input_tokens", "input_tokens", "output_tokens"))
    assert usage["output_tokens"] > 0
    assert "timings" not in answer


def test_anthropic_messages_forms(url: str) -> None:
    """The tests with a system prompt, with several blocks of text, and of a conversation."""
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": " the answer?"}]
    turns = [("user", "Hello"), ("assistant", "Hi there!"), ("user", "How are you?")]
    for answer in (
        message(url, system="You are a helpful assistant."),
        message(url, {"role": "user", "content": parts}),
        message(url, *({"role": role, "content": text} for role, text in turns)),
    ):
        assert answer["type"] == "message"
        assert len(answer["content"]) > 0


def test_anthropic_messages_streaming(url: str) -> None:
    asked = [{"role": "user", "content": "Say hello"}]
    events = events_of(post(url, "/v1/messages", max_tokens=30, messages=asked, stream=True))
    by_type = {event["type"]: event for event in events}
    start = by_type["message_start"]["message"]
    assert (start["type"], start["role"], start["content"]) == ("message", "assistant", [])
    assert start["usage"]["input_tokens"] > 0
    assert by_type["content_block_start"]["index"] == 0
    assert by_type["content_block_start"]["content_block"]["type"] == "text"
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert deltas
    assert all(event["index"] == 0 and event["delta"]["type"] == "text_delta" for event in deltas)
    assert all("text" in event["delta"] for event in deltas)
    assert by_type["content_block_stop"]["index"] == 0
    assert by_type["message_delta"]["delta"]["stop_reason"] in ("end_turn", "max_tokens")
    assert by_type["message_delta"]["usage"]["output_tokens"] > 0
    assert "timings" not in by_type["message_stop"]


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_anthropic_count_tokens(url: str, system: str | None) -> None:
    asked = [{"role": "user", "content": "Hello world"}]
    answer = post(url, "/v1/messages/count_tokens", messages=asked, system=system)
    assert answer.status_code == 200
    assert answer.json()["input_tokens"] > 0
    assert "output_tokens" not in answer.json()


def test_anthropic_vision_is_refused_in_words(url: str) -> None:
    """llama.cpp refuses a picture, too, if its model has no eyes."""
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    turn = {"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}
    answer = post(url, "/v1/messages", max_tokens=10, messages=[turn])
    assert answer.status_code == 400
    assert "Pictures are not offered" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"stop_sequences": ["\n", "END"]},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"top_k": 40},
        {"metadata": {"user_id": "test_user_123"}},
    ],
    ids=str,
)
def test_anthropic_parameters(url: str, fields: dict[str, Any]) -> None:
    """The tests of each parameter."""
    assert message(url, **fields)["type"] == "message"


def test_anthropic_missing_messages(url: str) -> None:
    assert post(url, "/v1/messages", max_tokens=50).status_code == 400


def test_anthropic_vs_openai_different_response_format(url: str) -> None:
    of_openai = ask(url, {"role": "user", "content": "Hello"}, path="/v1/chat/completions", max_tokens=50)
    of_anthropic = message(url, {"role": "user", "content": "Hello"})
    assert (of_openai["object"], of_anthropic["type"]) == ("chat.completion", "message")
    assert of_openai["choices"]
    assert of_anthropic["content"]
    assert {"prompt_tokens", "completion_tokens"} <= set(of_openai["usage"])
    assert {"input_tokens", "output_tokens"} <= set(of_anthropic["usage"])
