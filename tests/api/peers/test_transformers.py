"""What the tests of ``transformers serve`` assert, of phi-3-tiny. README.md says which test of transformers each is."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types import Completion
from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY

MODEL = "phi-3-tiny"
HELLO: list[Any] = [{"role": "user", "content": "Say hello"}]
ALICE: list[Any] = [
    {"role": "user", "content": "My name is Alice"},
    {"role": "assistant", "content": "Nice to meet you!"},
    {"role": "user", "content": "What is my name?"},
]
FRANCE = "The capital of France is"


def chat(sdk: OpenAI, messages: Any = HELLO, **fields: Any) -> Any:
    return sdk.chat.completions.create(model=MODEL, messages=messages, **{"temperature": 0, **fields})


def complete(sdk: OpenAI, prompt: Any = FRANCE, **fields: Any) -> Any:
    return sdk.completions.create(model=MODEL, prompt=prompt, **{"temperature": 0, **fields})


def respond(sdk: OpenAI, asked: Any = "Say hello", **fields: Any) -> Any:
    return sdk.responses.create(model=MODEL, input=asked, **{"temperature": 0, **fields})


def written(url: str, messages: Any) -> str:
    text: str = httpx2.post(f"{url}/apply-template", json={"messages": messages}).raise_for_status().json()["prompt"]
    return text


# TestProcessorInputsFromMessages, TestBuildGenerationConfig, TestValidation, TestResolveModel, TestAppRoutes


def test_messages_become_the_prompt(url: str) -> None:
    """The tests of string content, and of a conversation of several turns."""
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_TINY)
    for messages in (HELLO, ALICE):
        assert written(url, messages) == tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens(sdk: OpenAI, name: str) -> None:
    assert chat(sdk, **{name: 7}, extra_body={"ignore_eos": True}).usage.completion_tokens == 7


def test_temperature_zero_disables_sampling(sdk: OpenAI) -> None:
    texts = {chat(sdk, temperature=0.0, seed=seed, max_tokens=20).choices[0].message.content for seed in range(3)}
    assert len(texts) == 1


def test_logit_bias(sdk: OpenAI) -> None:
    answer = chat(sdk, max_tokens=3, logit_bias={"400": 100}, extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == [400] * 3


def test_unexpected_keys_rejected(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="bogus_field"):
        chat(sdk, extra_body={"bogus_field": True})


def test_unsupported_fields_are_named(sdk: OpenAI) -> None:
    """The log of transformers has a warning; here the client learns it."""
    with pytest.raises(openai.BadRequestError, match="`audio` is not accepted"):
        chat(sdk, extra_body={"audio": {"voice": "alloy"}})
    with pytest.raises(openai.BadRequestError, match="`previous_response_id` is not accepted"):
        respond(sdk, previous_response_id="abc")


def test_another_model_is_refused(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"other/model.*phi-3-tiny"):
        sdk.chat.completions.create(model="other/model", messages=HELLO)


def test_health(url: str) -> None:
    assert httpx2.get(f"{url}/health").status_code == 200


def test_models_list(url: str) -> None:
    found = httpx2.get(f"{url}/v1/models").raise_for_status().json()
    assert found["object"] == "list"
    assert len(found["data"]) == 1


def test_request_id(url: str) -> None:
    """The tests of an id that is made, and of one that is sent."""
    assert len(httpx2.get(f"{url}/health").headers["x-request-id"]) >= 32
    assert httpx2.get(f"{url}/health", headers={"x-request-id": "my-id"}).headers["x-request-id"] == "my-id"


# TestChatCompletion, TestContinuousBatchingChatCompletion


def test_non_streaming(sdk: OpenAI) -> None:
    answer = chat(sdk)
    assert answer.id
    (choice,) = answer.choices
    assert isinstance(choice.message.content, str)
    assert choice.message.content
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_streaming(sdk: OpenAI) -> None:
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat(sdk, stream=True))


@pytest.mark.parametrize(("max_tokens", "reason"), [(3, "length"), (None, "stop")])
def test_finish_reason_of_a_stream(sdk: OpenAI, max_tokens: int | None, reason: str) -> None:
    """The tests of an early return due to the length, and of an answer that goes on until it stops."""
    body = {"ignore_eos": True} if reason == "length" else {}
    chunks = list(chat(sdk, stream=True, max_tokens=max_tokens, extra_body=body))
    assert chunks[-1].choices[0].finish_reason == reason


def test_stop_strings(sdk: OpenAI) -> None:
    whole = chat(sdk).choices[0].message.content
    stop = whole[3:5]
    assert chat(sdk, stop=[stop]).choices[0].message.content == whole[: whole.index(stop)]
    continued = complete(sdk, max_tokens=20, extra_body={"ignore_eos": True}).choices[0].text
    stop = continued[3:5]
    assert complete(sdk, max_tokens=20, stop=[stop]).choices[0].text == continued[: continued.index(stop)]


def test_multi_turn(sdk: OpenAI) -> None:
    """The name is in what the model reads; phi-3-tiny cannot be trusted to repeat it."""
    answer = chat(sdk, ALICE, extra_body={"return_token_ids": True})
    tokenizer: Any = AutoTokenizer.from_pretrained(EMBEDDED_TINY)
    assert "My name is Alice" in tokenizer.decode(answer.prompt_token_ids)
    assert answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_concurrent(sdk: OpenAI, stream: bool) -> None:
    """The tests of two chats and of two responses at once, plain and streamed: each has the answer it has alone."""

    def of_chat(text: str) -> str:
        answer = chat(sdk, [{"role": "user", "content": text}], stream=stream)
        if stream:
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        return answer.choices[0].message.content or ""

    def of_responses(text: str) -> str:
        answer = respond(sdk, text, stream=stream)
        if not stream:
            assert answer.status == "completed"
            return str(answer.output_text)
        events = list(answer)
        assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
        return "".join(event.delta for event in events if event.type == "response.output_text.delta")

    texts = ["Say hello", "Say goodbye"]
    with ThreadPoolExecutor(4) as pool:
        of_both = [pool.map(of_chat, texts), pool.map(of_responses, texts)]
        chats, responses = (list(each) for each in of_both)
    assert all(chats)
    assert chats == responses == [of_chat(text) for text in texts]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("chat/completions", {"messages": HELLO}),
        ("completions", {"prompt": "Count slowly:", "max_tokens": 500}),
        ("responses", {"input": "Count slowly so I can cancel you."}),
    ],
)
def test_request_cancellation(url: str, sdk: OpenAI, path: str, asked: dict[str, Any]) -> None:
    """That the work ends, too, is asserted in tests/api/test_silent_streams.py and tests/serving."""
    body = {"model": MODEL, "stream": True, "ignore_eos": True, **asked}
    with httpx2.stream("POST", f"{url}/v1/{path}", json=body, timeout=30) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)]
    assert chat(sdk, max_tokens=10).choices[0].message.content is not None


# TestCompletion


def test_completion(sdk: OpenAI) -> None:
    answer = complete(sdk, max_tokens=5)
    assert isinstance(answer, Completion)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_completion_finish_reason(sdk: OpenAI) -> None:
    """The tests of the reasons length, plain and streamed, and stop."""
    assert complete(sdk, "Hello", max_tokens=1).choices[0].finish_reason == "length"
    assert list(complete(sdk, "Hello", max_tokens=1, stream=True))[-1].choices[0].finish_reason == "length"
    question = "<|user|>\nWhat is 2+2?<|end|>\n<|assistant|>\n"
    assert complete(sdk, question, max_tokens=1024).choices[0].finish_reason == "stop"


def test_completion_streaming(sdk: OpenAI) -> None:
    chunks = list(complete(sdk, max_tokens=5, stream=True))
    assert any(chunk.choices[0].text for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


# TestResponseInputConversion, TestResponseUsage, TestResponsesIntegration


def test_response_input(url: str, sdk: OpenAI) -> None:
    """The tests of a string and of a list, with instructions and without: the same tokens as a chat has."""
    system = {"role": "system", "content": "Be brief"}
    for fields, messages in (
        ({"input": "Say hello"}, HELLO),
        ({"input": "Say hello", "instructions": "Be brief"}, [system, *HELLO]),
        ({"input": ALICE}, ALICE),
        ({"input": ALICE, "instructions": "Be brief"}, [system, *ALICE]),
    ):
        answer: Any = sdk.responses.create(model=MODEL, temperature=0, **fields)
        of_chat = chat(sdk, messages)
        assert answer.output_text == of_chat.choices[0].message.content
        assert answer.usage.input_tokens == of_chat.usage.prompt_tokens


def test_max_output_tokens(sdk: OpenAI) -> None:
    assert respond(sdk, max_output_tokens=42, extra_body={"ignore_eos": True}).usage.output_tokens == 42


@pytest.mark.parametrize("stream", [False, True])
def test_response_usage(sdk: OpenAI, stream: bool) -> None:
    answer = respond(sdk, stream=stream)
    answer = list(answer)[-1].response if stream else answer
    assert answer.status == "completed"
    assert answer.output[0].content[0].text
    usage = answer.usage
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens == 0
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_response_streaming(sdk: OpenAI) -> None:
    kinds = [event.type for event in respond(sdk, stream=True)]
    assert len(kinds) >= 8
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip


def test_response_streaming_matches_non_streaming(sdk: OpenAI) -> None:
    deltas = [event.delta for event in respond(sdk, stream=True) if event.type == "response.output_text.delta"]
    assert "".join(deltas) == respond(sdk).output_text


def test_reasoning_round_trips(sdk: OpenAI) -> None:
    """The tests of reasoning that is sent back, which Phi-3's template does not write."""
    turns: Any = [
        *HELLO,
        {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."},
        {"role": "user", "content": "Again."},
    ]
    assert chat(sdk, turns).choices[0].message.content is not None
    items: Any = [
        *HELLO,
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Again."},
    ]
    assert respond(sdk, items).status == "completed"
