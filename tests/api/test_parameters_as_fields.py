"""Generate parameters as fields of the body, by their own names and by those of other servers, in every API."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from phi3_serve.api.function_tools import OpenAIToolFields
from phi3_serve.api.kaito.schema import ChatRequest
from phi3_serve.api.openai.schema import ChatCompletionRequest, CompletionRequest
from phi3_serve.api.other_names import OTHER_NAMES
from phi3_serve.api.refused_fields import IGNORED, REFUSED
from phi3_serve.parameters import NAMES
from phi3_serve.refused_parameters import NEVER
from phi3_serve.refused_parameters import REFUSED as REFUSED_PARAMETERS
from tests.support import ENDLESS

PROMPT = "<|user|> How to explain Internet for a medieval knight?<|end|><|assistant|>"
MESSAGES = [{"role": "user", "content": "How to explain Internet for a medieval knight?"}]
BODIES: dict[str, dict[str, Any]] = {
    "/chat": {"prompt": PROMPT, "return_full_text": False},
    "/v1/completions": {"model": "tested", "prompt": PROMPT},
    "/v1/chat/completions": {"model": "tested", "messages": MESSAGES},
}
SHORT = {"max_new_tokens": 12}
each_api = pytest.mark.parametrize("path", list(BODIES))


def answer(client: TestClient, path: str, fields: dict[str, Any], kwargs: dict[str, Any] | None = None) -> list[str]:
    """The texts of the answer."""
    body = {**BODIES[path], **fields, **({} if kwargs is None else {"generate_kwargs": kwargs})}
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    content = response.json()
    if path == "/chat":
        return content.get("Results", [content["Result"]])  # type: ignore[no-any-return]
    return [choice["text"] if "text" in choice else choice["message"]["content"] for choice in content["choices"]]


def refusal(client: TestClient, path: str, fields: dict[str, Any]) -> tuple[str, str | None]:
    """The message of the error, and the field that it names."""
    response = client.post(path, json={**BODIES[path], **fields})
    assert response.status_code in (400, 422), response.text
    content = response.json()
    if path != "/chat":
        return content["error"]["message"], content["error"]["param"]
    detail = content["detail"]
    if isinstance(detail, str):
        return detail, None
    return detail[0]["msg"], ".".join(str(part) for part in detail[0]["loc"][1:])


# Each of them changes the answer.
PARAMETERS: list[dict[str, Any]] = [
    {"do_sample": False},
    {"top_k": 1},
    {"min_p": 1.0},
    {"typical_p": 0.01, "seed": 3},
    {"repetition_penalty": 5.0, "do_sample": False},
    {"no_repeat_ngram_size": 1, "do_sample": False},
    {"num_beams": 3, "length_penalty": -2.0, "early_stopping": True, "do_sample": False},
    {"suppress_tokens": list(range(3, 600)), "do_sample": False},
    {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
    {"eos_token_id": 703, "suppress_tokens": [703], "do_sample": False},
]


@each_api
@pytest.mark.parametrize("parameters", PARAMETERS, ids=" ".join)
def test_a_field_is_the_same_as_in_generate_kwargs(client: TestClient, path: str, parameters: dict[str, Any]) -> None:
    expected = answer(client, path, {}, {**SHORT, **parameters})
    assert answer(client, path, {**SHORT, **parameters}) == expected
    assert answer(client, path, parameters, SHORT) == expected
    assert answer(client, path, parameters, {**SHORT, **parameters}) == expected


@each_api
@pytest.mark.parametrize(
    ("name", "value", "parameters"),
    [
        ("max_tokens", 3, {"max_new_tokens": 3}),
        ("max_completion_tokens", 3, {"max_new_tokens": 3}),
        ("n_predict", 3, {"max_new_tokens": 3}),
        ("num_predict", 3, {"max_new_tokens": 3}),
        ("max_output_tokens", 3, {"max_new_tokens": 3}),
        ("stop_sequences", ["e"], {"stop": ["e"]}),
        ("num_ctx", 30, {"max_length": 30}),
        ("n", 2, {"num_return_sequences": 2}),
        ("logit_bias", {"400": 100}, {"sequence_bias": [[[400], 100]]}),
        ("min_tokens", 9, {"min_new_tokens": 9}),
        ("top_k", -1, {"top_k": 0}),
    ],
)
def test_the_name_of_another_server(
    client: TestClient, path: str, name: str, value: Any, parameters: dict[str, Any]
) -> None:
    others = {"seed": 4, **({} if "max_new_tokens" in parameters else SHORT)}
    if name == "n" and path != "/chat":
        others["num_beams"] = 2  # sampled answers have seeds of their own in OpenAI's API
    expected = answer(client, path, {}, {**others, **parameters})
    assert answer(client, path, {name: value, **others}) == expected
    assert answer(client, path, others, {name: value}) == expected


@pytest.mark.slow
@each_api
@pytest.mark.parametrize(
    "unlimited", [{"max_tokens": -1}, {"n_predict": -1}, {"num_predict": -1}, {"num_predict": -2}], ids=str
)
def test_minus_one_is_no_limit_but_the_context(client: TestClient, path: str, unlimited: dict[str, Any]) -> None:
    fields = {"do_sample": False, "temperature": 1, **ENDLESS, **unlimited}
    details = {"return_dict_in_generate": True} if path == "/chat" else {}
    content = client.post(path, json={**BODIES[path], **fields, **details}).json()
    usage = content["Details"]["usage"] if path == "/chat" else content["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == 2048


@each_api
def test_a_seed_of_minus_one_is_no_seed(client: TestClient, path: str) -> None:
    fields = {"temperature": 2.0, "do_sample": True, **ENDLESS, "max_tokens": 12, "seed": -1}
    assert len({tuple(answer(client, path, fields)) for _ in range(4)}) > 1


@each_api
def test_max_tokens_is_kept_beside_max_length(client: TestClient, path: str) -> None:
    fields = {"do_sample": False, "temperature": 1, **ENDLESS, "max_tokens": 3, "max_length": 100}
    details = {"return_dict_in_generate": True} if path == "/chat" else {}
    content = client.post(path, json={**BODIES[path], **fields, **details}).json()
    usage = content["Details"]["usage"] if path == "/chat" else content["usage"]
    assert usage["completion_tokens"] == 3


@each_api
@pytest.mark.parametrize(
    ("fields", "one", "other"),
    [
        ({"top_k": 5, "generate_kwargs": {"top_k": 6}}, "top_k", "generate_kwargs.top_k"),
        ({"min_tokens": 2, "generate_kwargs": {"min_new_tokens": 3}}, "min_tokens", "generate_kwargs.min_new_tokens"),
        ({"max_tokens": 2, "n_predict": 3}, "max_tokens", "n_predict"),
        ({"generate_kwargs": {"n_predict": 3, "max_new_tokens": 4}}, "generate_kwargs.n_predict", "generate_kwargs.max_new_tokens"),
        ({"temperature": 0.5, "generate_kwargs": {"temperature": 0.6}}, "temperature", "generate_kwargs.temperature"),
        ({"n": 2, "num_return_sequences": 3}, "n", "num_return_sequences"),
        ({"logit_bias": {"5": 1}, "generate_kwargs": {"sequence_bias": [[[5], 2]]}}, "logit_bias", "generate_kwargs.sequence_bias"),
    ],
)  # fmt: skip
def test_two_values_are_refused(client: TestClient, path: str, fields: dict[str, Any], one: str, other: str) -> None:
    message, param = refusal(client, path, fields)
    assert message == f"`{one}` and `{other}` set the same parameter to different values; send one of them."
    assert param in (None, one)


@each_api
@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"top_k": -2}, "top_k", "out of range; allowed: whole number, at least -1"),
        ({"min_tokens": -1}, "min_tokens", "greater than or equal to 0"),
        ({"min_tokens": True}, "min_tokens", "`min_tokens` does not take true or false"),
        ({"generate_kwargs": {"min_tokens": True}}, "generate_kwargs.min_tokens", "`min_tokens` does not take"),
        ({"eos_token_id": [True]}, "eos_token_id.0", "`eos_token_id` does not take true or false"),
        (
            {"generate_kwargs": {"bad_words_ids": [[5, True]]}},
            "generate_kwargs.bad_words_ids.0.1",
            "does not take true",
        ),
        ({"eos_token_id": [1, -1]}, "eos_token_id.1", "greater than or equal to 0"),
        ({"early_stopping": "nevr"}, "early_stopping", "'never'"),
        ({"bad_words_ids": [[]]}, "bad_words_ids.0", "at least 1 item"),
        ({"max_tokens": 0}, "max_tokens", "-1"),
        ({"max_tokens": -2}, "max_tokens", "; allowed: whole number, at least "),
        ({"max_tokens": "abc"}, "max_tokens", "valid integer"),
        ({"n_predict": -3}, "n_predict", "out of range; allowed: whole number, at least 1 or `-2`, `-1`"),
        ({"use_beam_search": True, "n": "x"}, "n", "valid integer"),
        ({"bad_words": ["a", 5]}, "bad_words.1", "valid string"),
        ({"truncation_side": "middle"}, "truncation_side", "'left' or 'right'"),
        ({"generate_kwargs": {"stop": 5}}, "generate_kwargs.stop", "valid string; or: Input should be a valid list"),
        ({"generate_kwargs": []}, "generate_kwargs", "JSON object"),
        ({"generate_kwargs": [], "top_k": 5}, "generate_kwargs", "JSON object"),
    ],
)
def test_a_wrong_value_is_named_where_it_was_sent(
    client: TestClient, path: str, fields: dict[str, Any], param: str, text: str
) -> None:
    message, named = refusal(client, path, fields)
    assert named == param
    assert text in message


@each_api
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"logit_bias": {"9999": 1}}, "`logit_bias` holds token id 9999"),
        ({"logit_bias": {"x": 1}}, "`logit_bias` names 'x'"),
        ({"eos_token_id": 9999}, "`eos_token_id` holds token id 9999"),
        ({"num_beams": 2, "n": 3}, "`n` (3) has to be smaller or equal to `num_beams` (2)"),
        ({"num_beams": 2, "num_return_sequences": 3}, "`num_return_sequences` (3) has to be smaller"),
        ({"num_beams": 2, "top_logprobs": 1, "logprobs": 1}, "is not offered with beam search (`num_beams`)"),
    ],
)
def test_what_the_model_refuses_has_the_name_that_was_sent(
    client: TestClient, path: str, fields: dict[str, Any], text: str
) -> None:
    if path == "/chat":
        fields = {name: value for name, value in fields.items() if name != "logprobs"}
    assert text in refusal(client, path, fields)[0]


@each_api
@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temprature", 1, "`temprature` is not a field; did you mean `temperature`?"),
        ("top-k", 1, "`top-k` is not a field; did you mean `top_k`?"),
        ("logits_processors", ["my.module"], "it would run code that the request brings"),
        ("prompt_logprob_token_ids", [1], "prompt_logprobs returns the likeliest tokens, and no others"),
        ("guided_whitespace_pattern", " ", "JSON has a space, or a new line and its indentation, between its tokens"),
        ("mirostat", 2, "this sampler is not offered"),
        ("options", {"num_predict": 5}, "ollama's options are fields of the body here"),
        ("penalty_alpha", 0.6, "contrastive search is not offered"),
        ("input_ids", [1], "it takes a tensor; send the prompt as text"),
        ("mcp_servers", [{"name": "x"}], "the server runs no tools itself"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    client: TestClient, path: str, name: str, value: Any, text: str
) -> None:
    message, param = refusal(client, path, {name: value})
    assert text in message
    assert param in (None, name)


# The fields of ``CompletionRequest`` and ``ChatCompletionRequest`` of vLLM at 002032ee with their default values, as a
# client sends them that dumps such a request.
VLLM_DEFAULTS: dict[str, Any] = {
    "frequency_penalty": None,
    "logit_bias": None,
    "n": 1,
    "presence_penalty": None,
    "seed": None,
    "stop": [],
    "stream": False,
    "stream_options": None,
    "temperature": None,
    "top_p": None,
    "user": None,
    "use_beam_search": False,
    "top_k": None,
    "min_p": None,
    "repetition_penalty": None,
    "watermarking": None,
    "length_penalty": 1.0,
    "stop_token_ids": [],
    "include_stop_str_in_output": False,
    "ignore_eos": False,
    "min_tokens": 0,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "truncate_prompt_tokens": None,
    "truncation_side": None,
    "allowed_token_ids": None,
    "prompt_logprobs": None,
    "logprob_token_ids": None,
    "bad_words": [],
    "response_format": None,
    "structured_outputs": None,
    "priority": 0,
    "request_id": "0a1b",
    "session_id": None,
    "return_tokens_as_token_ids": None,
    "return_token_ids": None,
    "routed_experts_prompt_start": 0,
    "return_token_offsets": False,
    "return_mm_kwargs": True,
    "cache_salt": None,
    "kv_transfer_params": None,
    "ec_transfer_params": None,
    "vllm_xargs": None,
    "repetition_detection": None,
    "thinking_token_budget": None,
    "stream_interval": None,
    "echo": False,
}
VLLM_COMPLETION = {**VLLM_DEFAULTS, "logprobs": None, "max_tokens": 16, "suffix": None, "add_special_tokens": True}
VLLM_CHAT = {
    **VLLM_DEFAULTS,
    "logprobs": False,
    "top_logprobs": 0,
    "max_tokens": None,
    "max_completion_tokens": 16,
    "tools": None,
    "tool_choice": "none",
    "reasoning_effort": None,
    "include_reasoning": True,
    "parallel_tool_calls": True,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
    "documents": None,
    "chat_template": None,
    "chat_template_kwargs": None,
    "media_io_kwargs": None,
    "mm_processor_kwargs": None,
    "return_prompt_text": False,
}


@pytest.mark.parametrize(
    ("path", "defaults"), [("/v1/completions", VLLM_COMPLETION), ("/v1/chat/completions", VLLM_CHAT)]
)
def test_the_default_values_of_vllm_change_nothing(client: TestClient, path: str, defaults: dict[str, Any]) -> None:
    greedy = {"temperature": 0}
    assert answer(client, path, {**defaults, **greedy}) == answer(client, path, {**greedy, "max_tokens": 16})
    options = {"include_usage": True, "continuous_usage_stats": False}
    streamed = client.post(path, json={**BODIES[path], **defaults, "stream": True, "stream_options": options})
    assert streamed.status_code == 200, streamed.text


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_payloads_of_serving_benchmarks(client: TestClient, path: str) -> None:
    """VLLM's ``vllm bench serve`` (benchmarks/lib/endpoint_request_func.py) and SGLang's ``bench_serving.py``."""
    is_chat = "chat" in path
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    content = [{"type": "text", "text": PROMPT}]
    of_vllm = (
        {"messages": [{"role": "user", "content": content}], "max_completion_tokens": 4, **usage}
        if is_chat
        else {"prompt": PROMPT, "repetition_penalty": 1.0, "max_tokens": 4, "logprobs": None, **usage}
    )
    of_sglang = (
        {"messages": MESSAGES, "temperature": 0.0, "max_tokens": 4, "stream": True}
        if is_chat
        else {"prompt": PROMPT, "temperature": 0.0, "best_of": 1, "max_tokens": 4, "stream": True, "ignore_eos": True}
    )
    for payload in ({**of_vllm, "ignore_eos": True}, of_vllm, of_sglang):
        response = client.post(path, json={"model": "tested", **payload})
        assert response.status_code == 200, response.text
        assert response.text.endswith("data: [DONE]\n\n")
        assert ('"usage": {' in response.text) == ("stream_options" in payload)


@pytest.mark.parametrize("name", ["min_completion_tokens", "min_predict", "max_predict_tokens", "max_new_token_length"])
def test_a_minimum_is_never_taken_for_a_maximum(client: TestClient, name: str) -> None:
    message, _ = refusal(client, "/v1/chat/completions", {name: 1})
    assert f"`{name}` is not a field" in message
    assert f"did you mean `{'max' if name.startswith('min') else 'min'}" not in message


@each_api
def test_values_that_ask_for_nothing_pass(client: TestClient, path: str) -> None:
    """As clients of vLLM, SGLang and llama.cpp send them."""
    fields = {
        **{name: values[0] for name, (_, values) in REFUSED.items() if values and name != "suffix"},
        **dict.fromkeys(IGNORED - {"metadata"}, 1),
        **dict.fromkeys([*NAMES, *OTHER_NAMES, *REFUSED]),
    }
    asking = {name: values[0] for name, (_, values) in REFUSED.items() if values}
    assert answer(client, path, {**fields, **asking, "max_tokens": 4, "do_sample": False})


OF_THE_TEMPLATE = ("add_generation_prompt", "continue_final_message", "chat_template_kwargs")


def test_no_name_is_in_two_tables() -> None:
    """A name that is honoured is not refused."""
    own = {*ChatRequest.model_fields, *ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    # refused by some endpoints
    of_v1 = {"best_of", "return_token_ids", "return_tokens_as_token_ids", *OF_THE_TEMPLATE}
    own -= {*of_v1, *OpenAIToolFields.model_fields}
    honoured = {*NAMES, *OTHER_NAMES, *own}
    assert honoured & {*REFUSED, *REFUSED_PARAMETERS, *NEVER} == set()
    assert honoured & IGNORED == set()


@pytest.fixture(scope="module")
def sdk(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_extra_body_of_the_sdk(sdk: OpenAI, client: TestClient) -> None:
    extra: dict[str, Any] = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.3,
        "min_tokens": 8,
        "no_repeat_ngram_size": 2,
    }
    expected = answer(client, "/v1/chat/completions", {}, {**SHORT, "seed": 1, **extra})
    asked: Any = {"model": "tested", "messages": MESSAGES, "max_tokens": 12, "seed": 1, "extra_body": extra}
    assert sdk.chat.completions.create(**asked).choices[0].message.content == expected[0]
    streamed = "".join(c.choices[0].delta.content or "" for c in sdk.chat.completions.create(stream=True, **asked))
    assert streamed == expected[0]


def test_bodies_of_known_clients(client: TestClient) -> None:
    """The AKS extension to a KAITO workspace; the serving benchmarks of vLLM and SGLang; guidellm."""
    aks = {"temperature": 1, "top_p": 1, "top_k": 10, "repetition_penalty": 1, "max_tokens": 20}
    vllm = {"temperature": 0.0, "repetition_penalty": 1.0, "max_tokens": 8, "logprobs": None}
    sglang = {"temperature": 0.0, "best_of": 1, "max_tokens": 8}
    for body in (aks, vllm, sglang):
        assert answer(client, "/v1/completions", body)
    assert answer(client, "/v1/chat/completions", {"min_p": 0.05, "max_tokens": 2})
    assert answer(client, "/v1/chat/completions", {"max_completion_tokens": 3, "max_tokens": 3, "stop": None})


def test_chat_drops_no_parameter_in_silence(client: TestClient) -> None:
    body = {"prompt": "Hi", "return_dict_in_generate": True, "do_sample": False, "seed": 1, "max_new_tokens": 4}
    content = client.post("/chat", json=body).json()
    assert len(content["Details"]["sequences"][0]["token_ids"]) == 4
    assert (
        content["Result"]
        == answer(
            client, "/chat", {"prompt": "Hi", "return_full_text": True}, {"do_sample": False, "max_new_tokens": 4}
        )[0]
    )
    unknown = client.post("/chat", json={**body, "frobnicate": 1, "nothing": None}).json()
    assert unknown["warnings"] == ["`frobnicate` is not a field; it had no effect."]


@pytest.mark.parametrize(
    "name", ["id", "user_id", "conversation_id", "version", "history", "system_prompt", "verbose", "model_name"]
)
def test_chat_takes_fields_of_kaitos_clients_that_only_resemble_known_ones(client: TestClient, name: str) -> None:
    content = client.post("/chat", json={**BODIES["/chat"], name: "x", "max_new_tokens": 2}).json()
    assert content["warnings"] == [f"`{name}` is not a field; it had no effect."]


@each_api
def test_many_fields_and_long_names_cost_little(client: TestClient, path: str) -> None:
    begun = time.monotonic()
    message, _ = refusal(client, path, {f"zq{number:06d}wk": 1 for number in range(4_000)})
    assert "zq0000" in message
    message, param = refusal(client, path, {"max_new_token" * 5_000: 1, "top_kk": 1})
    assert param in (None, "top_kk", ("max_new_token" * 5_000)[:64])
    assert time.monotonic() - begun < 5


def test_null_kwargs_with_a_field(client: TestClient) -> None:
    """Null means the model's own config: 20 greedy tokens, and no limit of 200 with the prompt."""
    content = client.post(
        "/chat", json={**BODIES["/chat"], "generate_kwargs": None, "return_dict_in_generate": True}
    ).json()
    assert len(content["Details"]["sequences"][0]["token_ids"]) <= 20


@each_api
def test_a_warning_has_the_name_that_was_sent(client: TestClient, path: str) -> None:
    body = {**BODIES[path], "min_tokens": 99, "max_tokens": 4}
    (warning,) = client.post(path, json=body).json()["warnings"]
    assert warning.startswith("`min_tokens` asks for at least ")
