"""What vLLM's API tests assert, of phi-3-tiny. README.md says which test of vLLM each is, and what has none here."""

import json
import re
from typing import Any

import httpx2
import jsonschema
import openai
import pytest
from openai import OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseCreatedEvent, ResponseTextDeltaEvent
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY

MODEL = "phi-3-tiny"
CONTEXT, VOCABULARY = 2048, 1792
CHAT: list[Any] = [
    {"role": "system", "content": "you are a helpful assistant"},
    {"role": "user", "content": "what is 1+1?"},
]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0.0}
LONG: dict[str, Any] = {"ignore_eos": True}
TEXT = "The capital of France is"
IDS = [300, 301, 302, 303, 304]
CHOICES = ["Python", "Java", "JavaScript", "C++", "C#", "PHP", "TypeScript", "Ruby", "Swift", "Kotlin"]
IP_ADDRESS = r"((25[0-5]|(2[0-4]|1\d|[1-9]|)\d)\.){3}(25[0-5]|(2[0-4]|1\d|[1-9]|)\d)"
EMPLOYEE = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "skills": {"type": "array", "items": {"type": "string", "maxLength": 10}, "minItems": 3, "maxItems": 3},
    },
    "required": ["name", "age", "skills"],
    "additionalProperties": False,
}
CAR = {
    "$defs": {"CarType": {"enum": ["sedan", "SUV", "Truck", "Coupe"], "type": "string"}},
    "properties": {"brand": {"type": "string"}, "car_type": {"$ref": "#/$defs/CarType"}, "foo": "bar"},
    "required": ["brand", "car_type"],
    "type": "object",
}
NO_GRAMMAR = 'root ::= select_statementinvalidsyntax\nselect_statement ::= "SELECT "'


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED_TINY)


def chat(sdk: OpenAI, *messages: Any, **fields: Any) -> Any:
    return sdk.chat.completions.create(messages=list(messages) or CHAT, **{**GREEDY, **fields})


def complete(sdk: OpenAI, prompt: Any = TEXT, **fields: Any) -> Any:
    return sdk.completions.create(prompt=prompt, **{**GREEDY, **fields})


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


# openai/chat_completion/test_chat.py


def test_no_logprobs_chat(sdk: OpenAI) -> None:
    assert chat(sdk, max_completion_tokens=5, logprobs=False).choices[0].logprobs is None


@pytest.mark.parametrize("number", [0, 5])
def test_some_logprobs_chat(sdk: OpenAI, number: int) -> None:
    logprobs = chat(sdk, max_completion_tokens=5, logprobs=True, top_logprobs=number).choices[0].logprobs
    assert len(logprobs.content[0].top_logprobs) == number


@pytest.mark.parametrize(("number", "stream"), [(21, True), (30, False)])
def test_too_many_chat_logprobs(sdk: OpenAI, number: int, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError):
        chat(sdk, max_completion_tokens=10, logprobs=True, top_logprobs=number, stream=stream)
    assert chat(sdk, max_completion_tokens=10).choices[0].message.content is not None


@pytest.mark.parametrize("number", [1, 0, -1, None])
def test_prompt_logprobs_chat(sdk: OpenAI, number: int | None) -> None:
    body = {} if number is None else {"prompt_logprobs": number}
    if number == -1:
        with pytest.raises(openai.BadRequestError):
            chat(sdk, max_completion_tokens=4, extra_body=body)
        return
    answer = chat(sdk, max_completion_tokens=4, extra_body=body)
    found = getattr(answer, "prompt_logprobs", None)
    assert (found is None) == (number is None)
    assert found is None or len(found) == answer.usage.prompt_tokens


def test_more_than_one_prompt_logprobs_chat(sdk: OpenAI) -> None:
    for number in (1, 2):
        answer = chat(sdk, max_completion_tokens=4, extra_body={"prompt_logprobs": number})
        assert number <= len(answer.prompt_logprobs[3]) <= number + 1  # the token of the prompt is always there


def test_single_chat_session(sdk: OpenAI, tokenizer: Any) -> None:
    answer = chat(sdk, max_completion_tokens=5, logprobs=True, top_logprobs=5, extra_body=LONG)
    (choice,) = answer.choices
    num_prompt = len(tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"])
    assert answer.id
    assert choice.finish_reason == "length"
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens) == (5, num_prompt)
    assert answer.usage.total_tokens == num_prompt + 5
    assert choice.message.role == "assistant"
    assert choice.message.content
    turns = [*CHAT, {"role": "assistant", "content": choice.message.content}, user("express your result in json")]
    assert chat(sdk, *turns, max_completion_tokens=5).choices[0].message.content is not None


def test_chat_streaming(sdk: OpenAI) -> None:
    plain = chat(sdk, max_completion_tokens=10).choices[0]
    chunks = list(chat(sdk, max_completion_tokens=10, stream=True))
    assert {chunk.choices[0].delta.role for chunk in chunks} <= {"assistant", None}
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [plain.finish_reason]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.message.content


@pytest.mark.parametrize("endpoint", [chat, complete])
def test_stream_options(sdk: OpenAI, endpoint: Any) -> None:
    """Chat and completions have a test each in vLLM, which assert the same."""

    def streamed(**options: Any) -> list[Any]:
        return list(endpoint(sdk, max_tokens=10, stream=True, extra_body=LONG, stream_options=options))

    for options in ({"include_usage": False}, {"include_usage": False, "continuous_usage_stats": True}, {}):
        assert all(chunk.usage is None for chunk in streamed(**options))
    chunks = streamed(include_usage=True, continuous_usage_stats=False)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens == usage.prompt_tokens + 10
    chunks = streamed(include_usage=True, continuous_usage_stats=True)
    numbers = [chunk.usage.completion_tokens for chunk in chunks]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 10
    assert all(c.usage.total_tokens == c.usage.prompt_tokens + c.usage.completion_tokens for c in chunks)
    wrong: list[Any] = [{"include_usage": None}, {"include_usage": True}, {"continuous_usage_stats": None}]
    for options in wrong:
        with pytest.raises(openai.BadRequestError):
            endpoint(sdk, max_tokens=10, stream=False, stream_options=options)


def test_structured_outputs_choice_chat(sdk: OpenAI) -> None:
    turns = [*CHAT[:1], user("The best language for type-safe systems programming is ")]
    for _ in range(2):
        content = chat(
            sdk, *turns, max_completion_tokens=20, temperature=0.7,
            extra_body={"structured_outputs": {"choice": CHOICES}},
        ).choices[0].message.content  # fmt: skip
        assert content in CHOICES
        turns += [{"role": "assistant", "content": content}, user("I disagree, pick another one")]


def test_structured_outputs_json_chat(sdk: OpenAI) -> None:
    answer = chat(sdk, max_completion_tokens=300, extra_body={"structured_outputs": {"json": EMPLOYEE}})
    jsonschema.validate(json.loads(answer.choices[0].message.content), EMPLOYEE)


def test_structured_outputs_regex_chat(sdk: OpenAI) -> None:
    for _ in range(2):
        answer = chat(
            sdk, max_completion_tokens=40, temperature=1.0, extra_body={"structured_outputs": {"regex": IP_ADDRESS}}
        )
        assert re.fullmatch(IP_ADDRESS, answer.choices[0].message.content)


@pytest.mark.parametrize("endpoint", [chat, complete])
@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": {1: "Python", 2: "C++"}},
        {"json": CAR},
        {"regex": r"[.*"},
        {"grammar": NO_GRAMMAR},
        {"grammar": ""},
    ],
    ids=str,
)
def test_invalid_structured_outputs(sdk: OpenAI, endpoint: Any, outputs: dict[str, Any]) -> None:
    """The tests of a type error, of an invalid JSON schema, regex and grammar, and of an empty grammar."""
    with pytest.raises(openai.BadRequestError):
        endpoint(sdk, max_tokens=20, extra_body={"structured_outputs": outputs})


def test_structured_outputs_choice_chat_logprobs(sdk: OpenAI) -> None:
    answer = chat(
        sdk, max_completion_tokens=10, logprobs=True, top_logprobs=5,
        extra_body={"structured_outputs": {"choice": CHOICES}},
    )  # fmt: skip
    assert all(one.logprob >= -9999.0 for one in answer.choices[0].logprobs.content[0].top_logprobs)


def test_response_format(sdk: OpenAI) -> None:
    """The tests of json_object, json_schema and text; what the model says is its own."""
    text = chat(sdk, user('{"result": 2}'), max_tokens=50, response_format={"type": "json_object"}).choices[0]
    assert text.message.content.startswith("{")  # phi-3-tiny seldom closes an object of any form
    assert text.finish_reason == "length" or isinstance(json.loads(text.message.content), dict)
    schema = {"type": "object", "properties": {"result": {"type": "integer", "maximum": 99, "minimum": 0}}}
    of_schema = {"type": "json_schema", "json_schema": {"name": "foo_test", "schema": schema}}
    text = chat(sdk, max_tokens=100, response_format=of_schema)
    jsonschema.validate(json.loads(text.choices[0].message.content), schema)
    assert chat(sdk, max_tokens=10, response_format={"type": "text"}).choices[0].message.content is not None


def test_complex_message_content(sdk: OpenAI) -> None:
    in_parts = chat(sdk, user([{"type": "text", "text": "what is 1+1?"}]), max_tokens=10)
    assert (
        in_parts.choices[0].message.content == chat(sdk, user("what is 1+1?"), max_tokens=10).choices[0].message.content
    )


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63])
def test_long_seed(sdk: OpenAI, seed: int) -> None:
    with pytest.raises(openai.BadRequestError, match=r"(greater|less) than or equal"):
        chat(sdk, seed=seed)


@pytest.mark.parametrize(("n", "seed"), [(3, None), (2, 42), (1, None)])
def test_chat_completion_n(sdk: OpenAI, n: int, seed: int | None) -> None:
    asked: dict[str, Any] = {"max_completion_tokens": 20, "n": n, "seed": seed, "extra_body": LONG}
    asked["temperature"] = 2.0  # at 1.0, every second answer of phi-3-tiny is one of two
    answer = chat(sdk, **asked)
    assert [choice.index for choice in answer.choices] == list(range(n))
    assert all(choice.message.content for choice in answer.choices)
    assert n == 1 or len({choice.message.content for choice in answer.choices}) > 1
    texts = [""] * n
    for chunk in chat(sdk, **asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(texts)


def test_chat_completion_n_is_1_by_default(sdk: OpenAI) -> None:
    assert len(chat(sdk, max_completion_tokens=4).choices) == 1


# openai/chat_completion/test_chat_completion.py, openai/completion/test_completion.py


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side(sdk: OpenAI, side: str) -> None:
    kept = {"truncate_prompt_tokens": 4, "truncation_side": side}
    of_chat = chat(sdk, max_tokens=1, extra_body={"return_token_ids": True}).prompt_token_ids
    answer = chat(sdk, max_tokens=1, extra_body={"return_token_ids": True, **kept})
    assert answer.prompt_token_ids == (of_chat[-4:] if side == "left" else of_chat[:4])
    completion = complete(sdk, list(range(300, 308)), max_tokens=1, extra_body={"return_token_ids": True, **kept})
    expected = [304, 305, 306, 307] if side == "left" else [300, 301, 302, 303]
    assert completion.choices[0].prompt_token_ids == expected


def test_single_completion(sdk: OpenAI, tokenizer: Any) -> None:
    answer = complete(sdk, max_tokens=5, extra_body=LONG)
    (choice,) = answer.choices
    num_prompt = len(tokenizer(TEXT).input_ids)
    assert answer.id
    assert choice.text
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt, 5)
    assert answer.usage.total_tokens == num_prompt + 5
    by_ids = complete(sdk, IDS, max_tokens=5, extra_body=LONG).choices[0]
    assert by_ids.text
    assert getattr(by_ids, "prompt_logprobs", None) is None


def test_completion_logprobs(sdk: OpenAI) -> None:
    """The tests of no, zero and some log-probabilities."""
    assert complete(sdk, IDS, max_tokens=5, logprobs=None).choices[0].logprobs is None
    zero = complete(sdk, IDS, max_tokens=5, logprobs=0).choices[0].logprobs
    assert len(zero.token_logprobs) > 0
    assert len(zero.top_logprobs[0]) == 1
    some = complete(sdk, IDS, max_tokens=5, logprobs=5).choices[0].logprobs
    assert 5 <= len(some.top_logprobs[0]) <= 6


@pytest.mark.parametrize(("number", "stream"), [(21, False), (30, True)])
def test_too_many_completion_logprobs(sdk: OpenAI, number: int, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError):
        complete(sdk, IDS, max_tokens=5, logprobs=number, stream=stream)
    assert complete(sdk, IDS, max_tokens=5).choices[0].text is not None


@pytest.mark.parametrize("number", [-1, 0, 1, None])
def test_prompt_logprobs_completion(sdk: OpenAI, number: int | None) -> None:
    prompts = ["A robot may not injure another robot", "My name is"]
    body = {} if number is None else {"prompt_logprobs": number}
    if number == -1:
        with pytest.raises(openai.BadRequestError):
            complete(sdk, prompts, extra_body=body)
        return
    for choice in complete(sdk, prompts, extra_body=body).choices:
        found = getattr(choice, "prompt_logprobs", None)
        assert (found is None) == (number is None)
        assert found is None or len(found) > 0


def test_completion_streaming(sdk: OpenAI) -> None:
    plain = complete(sdk, max_tokens=5, extra_body=LONG).choices[0].text
    chunks = list(complete(sdk, max_tokens=5, stream=True, extra_body=LONG))
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain


@pytest.mark.parametrize("stream", [False, True])
def test_parallel_sampling(sdk: OpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {"max_tokens": 50, "n": 3, "temperature": 1.0, "seed": 42}
    texts, reasons = [""] * 3, [None] * 3
    for chunk in complete(sdk, "Once", stream=True, **asked) if stream else [complete(sdk, "Once", **asked)]:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert all(reasons)
    assert len(set(texts)) == 3


@pytest.mark.parametrize("prompt", [TEXT, IDS], ids=["text", "ids"])
def test_batch_completions(sdk: OpenAI, prompt: Any) -> None:
    one, other = complete(sdk, [prompt] * 2, max_tokens=5).choices
    assert one.text == other.text
    beams = complete(sdk, [prompt] * 2, n=2, max_tokens=5, extra_body={"use_beam_search": True}).choices
    assert len(beams) == 4
    assert beams[0].text != beams[1].text
    assert [beam.text for beam in beams[:2]] == [beam.text for beam in beams[2:]]
    texts = [""] * 2
    for chunk in complete(sdk, [prompt] * 2, max_tokens=5, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
    assert texts == [one.text] * 2


@pytest.mark.parametrize("number", [1, 0])
@pytest.mark.parametrize("prompt", ["Hello, my name is", IDS], ids=["text", "ids"])
def test_echo_logprob_completion(sdk: OpenAI, tokenizer: Any, prompt: Any, number: int) -> None:
    choice = complete(sdk, prompt, max_tokens=5, echo=True, logprobs=number).choices[0]
    assert choice.text.startswith(prompt if isinstance(prompt, str) else tokenizer.decode(prompt))
    logprobs = choice.logprobs
    assert len(logprobs.text_offset) == len(logprobs.tokens) == len(logprobs.token_logprobs) > 5
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert all(max(number, 1) <= len(each) <= number + 1 for each in logprobs.top_logprobs[1:])


# openai/completion/test_completion_text_offset.py, test_empty_prompt_list.py, test_prompt_validation.py


def test_stream_text_offset_matches_non_stream_with_stop_holdback(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"max_tokens": 8, "logprobs": 0, "stop": ["\n\n"]}
    streamed = [
        offset
        for chunk in complete(sdk, stream=True, **asked)
        if chunk.choices[0].logprobs
        for offset in chunk.choices[0].logprobs.text_offset
    ]
    assert streamed == complete(sdk, **asked).choices[0].logprobs.text_offset
    assert len(streamed) > 2


@pytest.mark.parametrize("prompt", [[], None])
def test_empty_prompt(sdk: OpenAI, prompt: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="prompt"):
        complete(sdk, prompt, max_tokens=5)
    assert complete(sdk, ["hello"], max_tokens=5).choices[0].text is not None


def test_out_of_vocab_token_ids(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=rf"999999.*{VOCABULARY - 1}"):
        complete(sdk, [999_999], max_tokens=5)


# openai/chat_completion/test_chat_echo.py


@pytest.mark.parametrize("echo", [True, False])
def test_chat_session_with_echo_and_continue_final_message(sdk: OpenAI, echo: bool) -> None:
    saying = "Here is a common saying about apple. An apple a day, keeps"
    answer = chat(
        sdk, user("tell me a common saying"), {"role": "assistant", "content": saying}, max_tokens=40,
        extra_body={"echo": echo, "continue_final_message": True, "add_generation_prompt": False},
    )  # fmt: skip
    (choice,) = answer.choices
    assert (saying in choice.message.content) == echo
    assert choice.message.role == "assistant"


# openai/chat_completion/test_chat_logit_bias_validation.py, test_chat_stop_token_ids_validation.py


def test_chat_logit_bias_valid(sdk: OpenAI) -> None:
    assert chat(sdk, max_tokens=5, logit_bias={str(VOCABULARY - 1): 1.0}).choices[0].message.content is not None


@pytest.mark.parametrize(
    ("biases", "named"),
    [
        ({str(VOCABULARY + 1): 1.0}, [str(VOCABULARY + 1), str(VOCABULARY - 1)]),
        ({"not_a_token_id": 50}, ["not_a_token_id", "logit_bias"]),
        ({"1": "not_a_number"}, ["logit_bias"]),
        ({"bad1": 50.0, "bad2": 20.0}, ["bad1", "bad2"]),
    ],
)
def test_chat_logit_bias_invalid(sdk: OpenAI, biases: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        chat(sdk, max_tokens=5, logit_bias=biases)
    assert all(name in str(refusal.value) for name in named), refusal.value


def test_chat_stop_token_ids(sdk: OpenAI) -> None:
    valid = chat(sdk, max_tokens=5, extra_body={"stop_token_ids": [VOCABULARY - 1]})
    assert valid.choices[0].message.content is not None
    for wrong, named in ((VOCABULARY + 1, [str(VOCABULARY + 1), str(VOCABULARY - 1)]), (-1, ["stop_token_ids"])):
        with pytest.raises(openai.BadRequestError) as refusal:
            chat(sdk, max_tokens=5, extra_body={"stop_token_ids": [wrong]})
        assert all(name in str(refusal.value) for name in named), refusal.value


# openai/basic/test_return_token_ids.py


def test_basic_completion_with_emoji(sdk: OpenAI, tokenizer: Any) -> None:
    prompt = "Complete this sentence with emojis: I love coding 🚀"
    choice = complete(sdk, prompt, max_tokens=10, logprobs=1, extra_body={"return_token_ids": True}).choices[0]
    assert choice.prompt_token_ids == tokenizer(prompt).input_ids
    assert choice.token_ids
    assert tokenizer.decode([*choice.prompt_token_ids, *choice.token_ids]).startswith(prompt + choice.text)
    without = complete(sdk, prompt, max_tokens=10, extra_body={"return_token_ids": False}).choices[0].model_dump()
    assert without.get("token_ids") is None
    assert without.get("prompt_token_ids") is None


def test_comparison_with_prompt_logprobs_and_logprobs(sdk: OpenAI) -> None:
    as_ids = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    choice = complete(
        sdk, "Hello, world! How are you today?", max_tokens=20, echo=True, logprobs=1,
        extra_body={**as_ids, "prompt_logprobs": 1},
    ).choices[0]  # fmt: skip
    assert choice.prompt_logprobs is not None
    listed = [int(token.removeprefix("token_id:")) for token in choice.logprobs.tokens]
    assert listed == choice.prompt_token_ids + choice.token_ids
    chunks = list(complete(sdk, TEXT, max_tokens=30, stream=True, logprobs=1, extra_body={**as_ids, **LONG}))
    assert chunks[0].choices[0].prompt_token_ids
    streamed = [token_id for chunk in chunks for token_id in chunk.choices[0].token_ids]
    tokens = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.tokens]
    assert [f"token_id:{token_id}" for token_id in streamed] == tokens


def test_chat_completion_with_emoji_and_token_ids(sdk: OpenAI, tokenizer: Any) -> None:
    turns = [{"role": "system", "content": "You like emojis."}, user("Repeat after me: I love cats 🐱")]
    answer = chat(sdk, *turns, max_tokens=50, logprobs=True, extra_body={"return_token_ids": True})
    prompt = tokenizer.decode(answer.prompt_token_ids)
    assert "You like emojis." in prompt
    assert "I love cats 🐱" in prompt
    chunks = list(chat(sdk, *turns, max_tokens=50, stream=True, extra_body={"return_token_ids": True}))
    assert chunks[0].prompt_token_ids == answer.prompt_token_ids
    assert all("prompt_token_ids" not in chunk.model_dump() for chunk in chunks[1:])
    streamed = [token_id for chunk in chunks for token_id in chunk.choices[0].model_dump().get("token_ids", [])]
    assert streamed == answer.choices[0].token_ids


# openai/chat_completion/test_non_object_body_validation.py, serve/middleware/test_x_request_id.py


@pytest.mark.parametrize("body", [b'"this is not valid json{{{"', b'["not", "an", "object"]', b"42", b"null"])
def test_chat_completion_request_rejects_non_object_body(url: str, body: bytes) -> None:
    answer = httpx2.post(
        f"{url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 400
    assert "error" in answer.json()


@pytest.mark.parametrize("request_id", [None, "caller"])
def test_response_has_one_request_id(url: str, request_id: str | None) -> None:
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    values = httpx2.get(f"{url}/v1/models", headers=headers).headers.get_list("x-request-id")
    assert len(values) == 1
    assert values[0] if request_id is None else values == [request_id]


# openai/test_tokenization.py


@pytest.mark.parametrize("adds_special_tokens", [False, True])
def test_tokenize_completions(url: str, tokenizer: Any, adds_special_tokens: bool) -> None:
    prompt = "vllm1 This is a test prompt."
    body = {"add_special_tokens": adds_special_tokens, "model": MODEL, "prompt": prompt}
    found = httpx2.post(f"{url}/tokenize", json=body).raise_for_status().json()
    assert found["tokens"] == tokenizer.encode(prompt, add_special_tokens=adds_special_tokens)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), CONTEXT)
    assert found.get("token_strs") is None


@pytest.mark.parametrize("adds_special_tokens", [False, True])
@pytest.mark.parametrize(("generates", "continues"), [(True, False), (False, False), (False, True)])
def test_tokenize_chat(url: str, tokenizer: Any, adds_special_tokens: bool, generates: bool, continues: bool) -> None:
    turns = [user("Hi there!"), {"role": "assistant", "content": "Nice to meet you!"}, user("A question? vllm1")]
    if continues:
        turns.append({"role": "assistant", "content": "Sure,"})
    how = {"add_generation_prompt": generates, "continue_final_message": continues}
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, **how)
    body = {**how, "add_special_tokens": adds_special_tokens, "messages": turns, "model": MODEL}
    found = httpx2.post(f"{url}/tokenize", json=body).raise_for_status().json()
    assert found["tokens"] == tokenizer.encode(prompt, add_special_tokens=adds_special_tokens)
    assert found["count"] == len(found["tokens"])


def test_tokenize_with_return_token_strs(url: str, tokenizer: Any) -> None:
    prompt = "This is a token_strs test prompt! vllm1"
    body = {"prompt": prompt, "model": MODEL, "return_token_strs": True}
    found = httpx2.post(f"{url}/tokenize", json=body).raise_for_status().json()
    assert found["token_strs"] == tokenizer.convert_ids_to_tokens(tokenizer.encode(prompt))


def test_detokenize(url: str, tokenizer: Any) -> None:
    prompt = "This is a test prompt. vllm1"
    body = {"model": MODEL, "tokens": tokenizer.encode(prompt, add_special_tokens=False)}
    assert httpx2.post(f"{url}/detokenize", json=body).raise_for_status().json()["prompt"] == prompt


# openai/responses/test_basic.py, test_simple.py, test_structured_output.py


def respond(sdk: OpenAI, asked: Any = "What is 13 * 24?", **fields: Any) -> Any:
    return sdk.responses.create(input=asked, **{**GREEDY, **fields})


def test_responses(sdk: OpenAI) -> None:
    """The tests of a simple input, of instructions, of a chat and of an input with types."""
    turns = [*CHAT, {"role": "assistant", "content": "2"}, user("Multiply the result by 2.")]
    for asked in ("What is 13 * 24?", turns, [user([{"type": "input_text", "text": "Hello!"}])]):
        answer = respond(sdk, asked, instructions="Be kind.")
        assert answer.status == "completed"
        assert answer.incomplete_details is None
        assert answer.output[-1].type == "message"
        assert answer.output_text


def test_responses_reasoning_none(sdk: OpenAI) -> None:
    assert respond(sdk, reasoning={"effort": "none"}).status == "completed"


def test_responses_logprobs(sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 5, "max_output_tokens": 8}
    logprobs = respond(sdk, **asked).output[-1].content[-1].logprobs
    assert len(logprobs) > 0
    assert len(logprobs[0].top_logprobs) == 5
    events = list(respond(sdk, stream=True, **asked))
    streamed = [each for event in events if event.type == "response.output_text.delta" for each in event.logprobs]
    assert [each.token for each in streamed] == [each.token for each in logprobs]
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 5 for each in streamed)
    assert events[-1].response.output[-1].content[-1].logprobs == logprobs


def test_responses_streaming(sdk: OpenAI) -> None:
    """The tests of streaming, and of its text being that of the answer."""
    events = list(respond(sdk, "Say hello in one sentence.", stream=True))
    assert isinstance(events[0], ResponseCreatedEvent)
    assert isinstance(events[-1], ResponseCompletedEvent)
    deltas = [event.delta for event in events if isinstance(event, ResponseTextDeltaEvent)]
    assert deltas
    assert "".join(deltas) == events[-1].response.output_text
    assert len(events[-1].response.output) > 0


def test_responses_streaming_types(sdk: OpenAI) -> None:
    """Each event that begins something is followed by the one that ends it, the innermost first."""
    pairs = {
        "response.completed": "response.created",
        "response.output_item.done": "response.output_item.added",
        "response.content_part.done": "response.content_part.added",
    }
    open_events: list[str] = []
    for event in respond(sdk, "a story", tools=[], stream=True, background=False):
        if event.type in pairs.values():
            open_events.append(event.type)
        if event.type in pairs:
            assert open_events.pop() == pairs[event.type]
    assert open_events == []


@pytest.mark.parametrize("has_ids", [True, False])
def test_responses_history(sdk: OpenAI, has_ids: bool) -> None:
    """The three tests of a history that is sent back, with items of reasoning in it, with and without ids."""
    ids: list[dict[str, Any]] = [{"id": "msg_1", "status": "completed"}, {"id": "rs_1", "status": "completed"}]
    of_message, of_reasoning = ids if has_ids else [{}, {}]
    first = respond(sdk, "Remember this marker: MARKER-729.").output_text
    history: Any = [
        {"type": "message", **user([{"type": "input_text", "text": "Remember this marker: MARKER-729."}])},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": first}], **of_message},
        {"type": "reasoning", "summary": [], "encrypted_content": None, **of_reasoning},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "A greeting."}], "summary": [], "id": "x"},
        {"type": "message", **user("What marker?")},
    ]
    answer = respond(sdk, history)
    assert answer.status == "completed"
    without = [item for item in history if item["type"] == "message"]
    assert answer.output_text == respond(sdk, without).output_text


def test_responses_max_tokens(sdk: OpenAI) -> None:
    answer = respond(sdk, max_output_tokens=3, extra_body=LONG)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_responses_extra_sampling_params(sdk: OpenAI) -> None:
    extra = {"top_k": 40, "repetition_penalty": 1.2, "seed": 42}
    answer = respond(sdk, max_output_tokens=50, temperature=0.7, top_p=0.9, extra_body=extra)
    assert answer.status in ("completed", "incomplete")
    assert answer.output[0].content[0].text


class CalendarEvent(BaseModel):
    event_name: str = Field(max_length=20)
    date: str = Field(max_length=20)
    participants: list[str] = Field(max_length=2)


def test_responses_structured_output(sdk: OpenAI) -> None:
    text = {"format": {"type": "json_schema", "name": "calendar_event", "schema": EMPLOYEE, "strict": True}}
    jsonschema.validate(json.loads(respond(sdk, text=text, max_output_tokens=300).output_text), EMPLOYEE)
    parsed = sdk.responses.parse(input="A fair on Friday.", text_format=CalendarEvent, **GREEDY, max_output_tokens=300)
    assert isinstance(parsed.output_parsed, CalendarEvent)
