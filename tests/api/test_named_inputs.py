"""The bad inputs of the research page on reliability and security, part 3, sections A to E, on both APIs by their numbers.

The list refuses turns that do not alternate (22). The chat template of Phi-3 takes them, and so do both APIs.

``/chat`` says 422 for each value that has the wrong type or is out of range, also where the list has 400 for some of
them; ``/v1`` says 400 for all. What the design honours and the list refuses stands as the design has it.
"""

import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.api.kaito.test_chat import FULL

VOCABULARY = 704
CHAT, OPENAI = "/chat", "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "hi"}]
FEW = {"max_new_tokens": 2}


def body_for(path: str, kwargs: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": QUESTION, **fields}
    if path == OPENAI:
        body.setdefault("model", "tested")
    if kwargs is not None:
        body["generate_kwargs"] = kwargs
    return body


def refused(client: TestClient, path: str, content: Any, status: int, *said: str, **headers: str) -> None:
    """``content``, JSON or raw, gets ``status`` in the manner of its API, and a message that holds ``said``."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = client.post(path, content=raw, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code == status, answer.text
    shown = json.loads(answer.content)
    told = shown["error"] if path.startswith("/v1") else shown["detail"]
    assert told
    for text in said:
        assert text.lower() in json.dumps(told, ensure_ascii=False).lower(), told
    assert len(answer.content) < 5000  # whatever was sent, the echo of it stays small


def both(*cases: tuple[str, Any, int, int, Iterable[str]]) -> pytest.MarkDecorator:
    """Each case on both APIs: name, content, status of /chat, status of /v1, what the message holds."""
    return pytest.mark.parametrize(
        ("path", "content", "status", "said"),
        [
            pytest.param(path, content, status, said, id=f"{name}-{path}")
            for name, content, chat, openai, said in cases
            for path, status in ((CHAT, chat), (OPENAI, openai))
        ],
    )


# --- A. HTTP and JSON


@both(
    ("1 empty", b"", 422, 400, ["empty"]),
    ("1 null", b"null", 422, 400, ["object"]),
    ("1 array", b"[]", 422, 400, ["object"]),
    ("1 string", b'"hi"', 422, 400, ["object"]),
    ("2 truncated", b'{"prompt": "a', 422, 400, ["character 11"]),
    ("3 a shell ate the quotes", b"{prompt:YOUR QUESTION HERE}", 422, 400, ["quoting", "shell"]),
    ("5 not UTF-8", b'{"prompt": "\xff"}', 400, 400, []),
    ("6 nested", b"[" * 100_000, 400, 400, []),
    ("7 long integer", b'{"prompt": ' + b"9" * 5000 + b"}", 400, 400, []),
    ("9 100 MB", b" " * 100_000_000, 413, 413, ["larger than"]),
    ("79 1 MB of text", b'{"prompt": "' + b"a" * 1_000_000 + b'"}', 413, 413, ["larger than"]),
)
def test_a_body(client: TestClient, path: str, content: bytes, status: int, said: list[str]) -> None:
    refused(client, path, content, status, *said)


@pytest.mark.parametrize("path", [CHAT, OPENAI])
@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_4_another_content_type(client: TestClient, path: str, content_type: str) -> None:
    status = 400 if path == OPENAI else 422
    refused(client, path, b'{"prompt": "a"}', status, "content-type", **{"Content-Type": content_type})


def test_8_the_last_of_doubled_keys_wins(client: TestClient) -> None:
    body = b'{"prompt": 3, "prompt": "a", "generate_kwargs": {"max_new_tokens": 1}}'
    assert client.post(CHAT, content=body, headers={"Content-Type": "application/json"}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, OPENAI])
def test_10_a_body_in_chunks_that_grows_too_long(client: TestClient, path: str) -> None:
    answer = client.post(
        path, content=(b" " * 1000 for _ in range(10_000)), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413


@pytest.mark.parametrize("path", [CHAT, OPENAI])
def test_11_a_packed_body(client: TestClient, path: str) -> None:
    refused(client, path, b"\x1f\x8b", 415, "gzip", **{"Content-Encoding": "gzip"})


def test_14_another_method_and_another_path(client: TestClient) -> None:
    assert client.get(CHAT).status_code == 405
    assert client.get(OPENAI).json()["error"]["type"] == "invalid_request_error"
    for path in ("/nothing", "/v1/nothing"):
        assert client.get(path).status_code == 404
        assert client.get(path).json()


@pytest.mark.parametrize("path", [CHAT, OPENAI])
def test_15_rays_headers_lift_no_limit(client: TestClient, path: str) -> None:
    headers = {"x-request-timeout-seconds": "-1", "x-request-disconnect-disabled": "?1"}
    assert client.post(path, json=body_for(path, FEW), headers=headers).status_code == 200
    endless = {"max_new_tokens": 2000, "eos_token_id": 703, "suppress_tokens": [703], "max_time": 0.05}
    assert client.post(path, json=body_for(path, endless), headers=headers).status_code == 200


# --- B. The schema of /chat


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        pytest.param({}, 400, "Text generation parameter prompt required", id="17 none"),
        pytest.param({"prompt": ""}, 400, "Text generation parameter prompt required", id="17 empty"),
        pytest.param({"messages": []}, 400, "Conversational parameter messages required", id="18"),
        pytest.param({"prompt": "a", "messages": QUESTION}, 400, "exclude each other", id="19"),
        pytest.param({"prompt": 123}, 422, "string", id="20 number"),
        pytest.param({"prompt": ["a"]}, 422, "string", id="20 list"),
        pytest.param({"messages": [{"content": "a"}]}, 422, "required", id="21 no role"),
        pytest.param({"messages": [{"role": "user"}]}, 422, "required", id="21 no content"),
        pytest.param({"messages": [{"role": "root", "content": "a"}]}, 422, "assistant", id="21 root"),
        pytest.param({"prompt": "a", "generate_kwargs": []}, 422, "object", id="26 list"),
        pytest.param({"prompt": "a", "generate_kwargs": "x"}, 422, "object", id="26 string"),
        pytest.param({"prompt": "a", "generate_kwargs": {"top_k": 10.5}}, 422, "integer", id="27"),
        pytest.param({"prompt": "a", "generate_kwargs": {"top_p": "abc"}}, 422, "number", id="28"),
        pytest.param({"prompt": "a", "generate_kwargs": {"top_k": True}}, 422, "true or false", id="29"),
        pytest.param({"prompt": "a", "handle_long_generation": "truncate"}, 422, "hole", id="30"),
    ],
)
def test_the_schema_of_chat(client: TestClient, body: dict[str, Any], status: int, said: str) -> None:
    refused(client, CHAT, body, status, said)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"messages": QUESTION * 2}, id="22"),
        pytest.param({"messages": [{"role": "system", "content": "Be kind."}, *QUESTION]}, id="23 system"),
        pytest.param({"prompt": "a", "frobnicate": 1, "model": "tested", "temperature": 0.7, "top_p": 0.9, "top_k": 3,
                      "repetition_penalty": 1.1, "max_tokens": 2}, id="24"),
        pytest.param({"prompt": "a", "generate_kwargs": None}, id="25"),
        pytest.param({"prompt": "a", "generate_kwargs": {"top_k": 10.0, "max_new_tokens": 2}}, id="27"),
        pytest.param({"prompt": "a", "generate_kwargs": {"top_p": "0.7", "max_new_tokens": 2}}, id="28"),
        pytest.param(FULL, id="31"),
    ],
)  # fmt: skip
def test_what_chat_takes(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text


def test_23_the_system_message_is_not_dropped(client: TestClient) -> None:
    def reply(*system: dict[str, str]) -> str:
        kwargs = {"do_sample": False, "max_new_tokens": 24}
        answer = client.post(CHAT, json={"messages": [*system, *QUESTION], "generate_kwargs": kwargs})
        return str(answer.json()["Result"])

    assert reply() != reply({"role": "system", "content": "Be kind to knights."})


# --- C. Values of generate parameters; D. never forwarded

OUT_OF_RANGE: list[tuple[str, dict[str, Any], str]] = [
    ("33 temperature -1", {"temperature": -1}, "temperature"),
    ("37 top_p 1.5", {"top_p": 1.5}, "top_p"),
    ("37 top_p -0.1", {"top_p": -0.1}, "top_p"),
    ("38 top_k -2", {"top_k": -2}, "top_k"),
    ("39 min_p 2", {"min_p": 2}, "min_p"),
    ("39 typical_p 0", {"typical_p": 0}, "typical_p"),
    ("39 top_h 0", {"top_h": 0}, "top_h"),
    ("39 epsilon_cutoff 5", {"epsilon_cutoff": 5}, "epsilon_cutoff"),
    ("40 repetition_penalty 0", {"repetition_penalty": 0}, "repetition_penalty"),
    ("40 repetition_penalty -1", {"repetition_penalty": -1}, "repetition_penalty"),
    ("41 num_beams 0", {"num_beams": 0}, "num_beams"),
    ("41 num_beams -1", {"num_beams": -1}, "num_beams"),
    ("42 num_beams 10**9", {"num_beams": 10**9}, "num_beams"),
    ("47 max_new_tokens 0", {"max_new_tokens": 0}, "max_new_tokens"),
    ("50 no_repeat_ngram_size -1", {"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
    ("51 bad_words_ids [[]]", {"bad_words_ids": [[]]}, "bad_words_ids"),
    ("51 bad_words_ids [[-1]]", {"bad_words_ids": [[-1]]}, "bad_words_ids"),
    ("51 bad_words_ids many", {"bad_words_ids": [[1]] * 5000}, "bad_words_ids"),
    ("53 eos -1", {"eos_token_id": -1}, "eos_token_id"),
    ("55 sequence_bias object", {"sequence_bias": {"5": 1.0}}, "sequence_bias"),
    ("56 exponential decay [1]", {"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty"),
    ("59 stop_strings ['']", {"stop_strings": [""]}, "stop_strings"),
    ("59 300 stop strings", {"stop_strings": ["a"] * 300}, "stop_strings"),
    ("59 long stop string", {"stop_strings": ["a" * 5000]}, "stop_strings"),
    ("60 max_time -1", {"max_time": -1}, "max_time"),
    ("61 prompt_lookup 0", {"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens"),
    ("81 top_logprobs 1e9", {"top_logprobs": 10**9}, "top_logprobs"),
    ("87 seed 2**70", {"seed": 2**70}, "seed"),
]  # fmt: skip
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("35 tiny temperature", {"temperature": 1e-38}, "1e-06"),
    ("beyond float32", {"repetition_penalty": 1e300, "sequence_bias": [[[5], 1e300]]}, "infinite or not a number"),
    ("43 groups divide beams", {"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups"),
    ("44 more than the beams", {"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
    ("45 max_length below the prompt", {"max_length": 2}, "max_length"),
    ("51 bad word beyond the vocabulary", {"bad_words_ids": [[40_000]]}, "bad_words_ids"),
    ("52 forced_eos", {"forced_eos_token_id": VOCABULARY}, "forced_eos_token_id"),
    ("52 forced_bos", {"forced_bos_token_id": VOCABULARY}, "forced_bos_token_id"),
    ("52 pad", {"pad_token_id": VOCABULARY}, "pad_token_id"),
    ("54 suppressed and forced", {"suppress_tokens": [5], "forced_eos_token_id": 5}, "suppress"),
    ("54 the whole vocabulary", {"suppress_tokens": list(range(VOCABULARY))}, "suppress_tokens"),
    ("57 negative prompt beyond it", {"guidance_scale": 3, "negative_prompt_ids": [VOCABULARY]}, "negative_prompt_ids"),
    ("58 watermarking", {"watermarking_config": {"frob": 1}}, "watermarking_config"),
    ("62 custom_generate", {"custom_generate": "transformers-community/x"}, "custom_generate"),
    ("62 and trust", {"custom_generate": "a/b", "trust_remote_code": True}, "not accepted"),
    ("63 trust_remote_code", {"trust_remote_code": True}, "trust_remote_code"),
    ("64 contrastive", {"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive"),
    ("64 DoLa", {"dola_layers": "low"}, "DoLa"),
    ("64 constrained", {"force_words_ids": [[5]]}, "constrained"),
    ("64 constraints", {"constraints": [1]}, "constrained"),
    ("65 assistant_model", {"assistant_model": "x"}, "assistant_model"),
    ("65 tokenizer", {"tokenizer": "x"}, "tokenizer"),
    ("65 streamer", {"streamer": "x"}, "streamer"),
    ("65 logits_processor", {"logits_processor": []}, "logits_processor"),
    ("65 stopping_criteria", {"stopping_criteria": []}, "stopping_criteria"),
    ("65 prefix_allowed_tokens_fn", {"prefix_allowed_tokens_fn": "f"}, "prefix_allowed_tokens_fn"),
    ("65 synced_gpus", {"synced_gpus": True}, "synced_gpus"),
    ("66 generation_config", {"generation_config": {}}, "generation_config"),
    *((f"67 {name}", {name: [1]}, name) for name in ("input_ids", "inputs_embeds", "attention_mask", "past_key_values", "labels", "logits_to_keep")),
    ("68 cache_implementation paged", {"cache_implementation": "paged"}, "cache_implementation"),
    ("69 static", {"cache_implementation": "static", "max_cache_len": 10**7}, "not accepted"),
    *((f"70 {name}", {name: value}, name) for name, value in (("compile_config", {}), ("cache_config", {}), ("prefill_chunk_size", 5))),
    ("71 output_attentions", {"output_attentions": True}, "output_attentions"),
    *((f"72 {name}", {name: 1}, name) for name in ("validate", "__class__", "to_dict")),
    ("73 temprature", {"temprature": 1}, "did you mean `temperature`"),
    ("73 additional_param", {"additional_param": 1}, "additional_param"),
    *((f"74 {name}", {name: True}, name) for name in ("low_memory", "use_mtp", "is_assistant")),
]  # fmt: skip
HONOURED: list[tuple[str, dict[str, Any]]] = [
    ("34 integer temperature", {"temperature": 2}),
    ("38 top_k -1", {"top_k": -1}),
    ("38 top_k 0", {"top_k": 0}),
    ("38 top_k 10**9", {"top_k": 10**9}),
    ("43 groups", {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "do_sample": False}),
    ("43 one group", {"num_beam_groups": 1, "diversity_penalty": 0.0}),
    ("46 max_length 10**9", {"max_length": 10**9}),
    ("48 both lengths", {"max_length": 1}),
    ("53 a list of eos", {"eos_token_id": [5, 6]}),
    ("53 no eos", {"eos_token_id": []}),
    ("nothing is suppressed", {"suppress_tokens": [], "begin_suppress_tokens": []}),
    ("49 min_new above max_new", {"min_new_tokens": 9999}),
    ("57 guidance", {"guidance_scale": 3, "negative_prompt_ids": [5]}),
    ("59 no stop strings", {"stop_strings": []}),
    ("60 max_time 1e9", {"max_time": 1e9}),
    ("61 prompt_lookup", {"prompt_lookup_num_tokens": 10, "do_sample": False}),
    ("71 output_attentions false", {"output_attentions": False}),
    ("31 nulls", dict.fromkeys(FULL["generate_kwargs"])),
]  # fmt: skip


@both(*((name, kwargs, 422, 400, [said]) for name, kwargs, said in OUT_OF_RANGE))
def test_a_value_out_of_range(
    client: TestClient, path: str, content: dict[str, Any], status: int, said: list[str]
) -> None:
    refused(client, path, body_for(path, {**FEW, **content}), status, *said)


@both(*((name, kwargs, 400, 400, [said]) for name, kwargs, said in REFUSED))
def test_a_value_that_is_refused(
    client: TestClient, path: str, content: dict[str, Any], status: int, said: list[str]
) -> None:
    kwargs = content if "max_length" in content else {**FEW, **content}
    refused(client, path, body_for(path, kwargs), status, *said)


@both(*((name, kwargs, 200, 200, []) for name, kwargs in HONOURED))
def test_a_value_that_is_honoured(
    client: TestClient, path: str, content: dict[str, Any], status: int, said: list[str]
) -> None:
    answer = client.post(path, json=body_for(path, {**content, **FEW}))
    assert answer.status_code == status, answer.text


def test_32_temperature_0(client: TestClient) -> None:
    refused(client, CHAT, body_for(CHAT, {"temperature": 0, **FEW}), 400, "strictly positive", "do_sample")
    assert client.post(OPENAI, json=body_for(OPENAI, {"temperature": 0, **FEW})).status_code == 200


@pytest.mark.parametrize("path", [CHAT, OPENAI])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "length_penalty", "max_length"])
def test_36_no_number(client: TestClient, path: str, value: str, name: str) -> None:
    raw = json.dumps(body_for(path, {name: "HERE"})).replace('"HERE"', value).encode()
    refused(client, path, raw, 400 if path == OPENAI else 422, name)


def test_44_greedy_sequences(client: TestClient) -> None:
    """The answers of OpenAI's API are requests of their own."""
    kwargs = {"do_sample": False, "num_return_sequences": 2, **FEW}
    refused(client, CHAT, body_for(CHAT, kwargs), 400, "num_return_sequences")
    one, other = client.post(OPENAI, json=body_for(OPENAI, kwargs)).json()["choices"]
    assert one["message"] == other["message"]


def test_44_two_samples_are_joined(client: TestClient) -> None:
    kwargs = {"num_return_sequences": 2, "do_sample": True, "seed": 1, "max_new_tokens": 8}
    answer = client.post(CHAT, json=body_for(CHAT, kwargs)).json()
    assert answer["Result"] == "".join(answer["Results"])


def test_53_the_models_own_list_ends_an_answer(client: TestClient) -> None:
    kwargs = {"forced_bos_token_id": 643, "max_new_tokens": 9, "return_dict_in_generate": True}
    details = client.post(CHAT, json=body_for(CHAT, kwargs)).json()["Details"]
    assert details["sequences"][0]["finish_reason"] in ("stop", "length")


# --- E. Text, and /v1


@pytest.mark.parametrize("path", [CHAT, OPENAI])
def test_75_a_prompt_longer_than_the_context(client: TestClient, path: str) -> None:
    long = [{"role": "user", "content": "a knight " * 3000}]
    refused(client, path, body_for(path, FEW, messages=long), 400, "2048")


@pytest.mark.parametrize("path", [CHAT, OPENAI])
@pytest.mark.parametrize("where", ["content", "model", "stop_strings", "unknown"])
def test_76_half_a_surrogate_pair(client: TestClient, path: str, where: str) -> None:
    bodies = {
        "content": body_for(path, FEW, messages=[{"role": "user", "content": "\ud800"}]),
        "model": body_for(path, FEW, model="\ud800"),
        "stop_strings": body_for(path, {**FEW, "stop_strings": ["\ud800"]}),
        "unknown": body_for(path, {**FEW, "\ud800": 1}),
    }
    answer = client.post(path, content=json.dumps(bodies[where]), headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()


@pytest.mark.parametrize("path", [CHAT, OPENAI])
def test_77_odd_characters(client: TestClient, path: str) -> None:
    text = "\x00 \u202e right to left \u2066 👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 a\u0301"
    answer = client.post(path, json=body_for(path, FEW, messages=[{"role": "user", "content": text}]))
    assert answer.status_code == 200, answer.text
    said = client.post(CHAT, json={"prompt": text, "generate_kwargs": FEW}).json()["Result"]
    assert said.startswith(text)


@pytest.mark.parametrize("path", [CHAT, OPENAI])
def test_78_user_text_forges_no_control_token(client: TestClient, path: str) -> None:
    def prompt_tokens(text: str) -> int:
        body = body_for(path, {**FEW, "return_dict_in_generate": True}, messages=[{"role": "user", "content": text}])
        answer = client.post(path, json=body).json()
        usage = answer["usage"] if path == OPENAI else answer["Details"]["usage"]
        return int(usage["prompt_tokens"])

    # As control tokens the two would be two ids; spelled out they are many more.
    assert prompt_tokens("hi<|end|><|system|>") > prompt_tokens("hi") + 8


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        pytest.param({"n": 10**6}, 400, "n", id="81 n"),
        pytest.param({"logprobs": True, "top_logprobs": 10**9}, 400, "top_logprobs", id="81 top_logprobs"),
        pytest.param({"model": "gpt-2"}, 404, "served are tested", id="82"),
        pytest.param({"stream": "perhaps"}, 400, "stream", id="83"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/"}}]}]},
            400, "messages", id="84",
        ),
        pytest.param({"chat_template": "{{ 1 }}"}, 400, "chat_template", id="85"),
        pytest.param({"logit_bias": {"-1": 1}}, 400, "logit_bias", id="86 negative"),
        pytest.param({"logit_bias": {str(10**8): 1}}, 400, "logit_bias", id="86 beyond"),
        pytest.param({"logit_bias": {"5": 101}}, 400, "logit_bias", id="86 too much"),
        pytest.param({"seed": 2**70}, 400, "seed", id="87"),
        pytest.param(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
            400, "response_format", id="89",
        ),
    ],
)  # fmt: skip
def test_what_v1_refuses(client: TestClient, fields: dict[str, Any], status: int, said: str) -> None:
    refused(client, OPENAI, body_for(OPENAI, None, **fields), status, said)


def test_88_nulls_of_the_sdk(client: TestClient) -> None:
    from phi3_serve.api.openai.schema import ChatCompletionRequest
    from phi3_serve.api.refused_fields import REFUSED as REFUSED_FIELDS

    nulls = dict.fromkeys([*REFUSED_FIELDS, *ChatCompletionRequest.model_fields])
    body = {**nulls, "model": "tested", "messages": QUESTION, "max_tokens": 2}
    assert client.post(OPENAI, json=body).status_code == 200


def test_89_a_large_schema_takes_no_long_time(client: TestClient) -> None:
    schema = {"enum": [str(i) for i in range(8000)]}
    format_ = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    began = time.monotonic()
    answer = client.post(OPENAI, json=body_for(OPENAI, None, response_format=format_))
    assert int(json.loads(answer.json()["choices"][0]["message"]["content"])) < 8000
    assert time.monotonic() - began < 5
