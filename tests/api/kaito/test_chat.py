"""POST /chat over a real replica: KAITO's contract, its defaults, its texts, and every refusal."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.config.app import AppConfig
from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import EngineFailure, ModelUnavailable, Overloaded, RequestTimeout
from tests.support import ENDLESS, LocalBackend

PROMPT = "<|user|> How to explain Internet for a medieval knight?<|end|><|assistant|>"
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}

# The full example of KAITO's page, every null and default of it.
FULL: dict[str, Any] = {
    "prompt": "<|user|> What is the meaning of life?<|end|><|assistant|>",
    "return_full_text": False,
    "clean_up_tokenization_spaces": False,
    "prefix": None,
    "handle_long_generation": None,
    "generate_kwargs": {
        "max_length": 200,
        "min_length": 0,
        "do_sample": True,
        "early_stopping": False,
        "num_beams": 1,
        "num_beam_groups": 1,
        "diversity_penalty": 0.0,
        "temperature": 1.0,
        "top_k": 10,
        "top_p": 1,
        "typical_p": 1,
        "repetition_penalty": 1,
        "length_penalty": 1,
        "no_repeat_ngram_size": 0,
        "encoder_no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "num_return_sequences": 1,
        "output_scores": False,
        "return_dict_in_generate": False,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "remove_invalid_values": None,
    },
}


def ask(client: TestClient, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    response = client.post("/chat", json=body)
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(client: TestClient, body: dict[str, Any]) -> list[tuple[str, Any]]:
    response = client.post("/chat", json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for block in response.text.split("\n\n")[:-1]:
        name = "message"
        for line in block.splitlines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            else:
                found.append((name, "DONE" if value == "[DONE]" else json.loads(value)))
    return found


@pytest.mark.parametrize("full_text", [True, False])
def test_a_greedy_answer_is_that_of_kaitos_pipeline(client: TestClient, oracle: Any, full_text: bool) -> None:
    expected = oracle(PROMPT, return_full_text=full_text, **GREEDY)[0]["generated_text"]
    answer = ask(client, {"prompt": PROMPT, "return_full_text": full_text, "generate_kwargs": GREEDY})
    assert answer == {"Result": expected}


def test_the_basic_example_gets_prompt_and_answer(client: TestClient) -> None:
    results = [ask(client, {"prompt": PROMPT})["Result"] for _ in range(4)]
    assert all(result.startswith(PROMPT) for result in results)
    assert any(len(result) > len(PROMPT) for result in results)  # one drawn answer may be empty


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        (
            {"min_new_tokens": 9},
            "`min_new_tokens` asks for at least 27 tokens of prompt and answer, but the most possible is 24; the answer "
            "ends there.",
        ),
        (
            {"min_length": 400},
            "`min_length` asks for at least 400 tokens of prompt and answer, but the most possible is 24; the answer ends "
            "there.",
        ),
        ({"eos_token_id": []}, "`eos_token_id` is empty: no token ends the answer."),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_transformers_only_warns_of_is_answered_with_the_warning(
    client: TestClient, oracle: Any, given: dict[str, Any], warning: str
) -> None:
    kwargs = {"do_sample": False, "max_new_tokens": 6, **given}
    expected = oracle(PROMPT, **kwargs)[0]["generated_text"]
    body = {"prompt": PROMPT, "generate_kwargs": kwargs}
    assert ask(client, body) == {"Result": expected, "warnings": [warning]}
    *_, (_, last), (_, end) = events(client, body)
    assert end == "DONE"
    assert last == {"Result": expected, "warnings": [warning]}


def test_the_full_example_gets_an_answer(client: TestClient) -> None:
    answer = ask(client, FULL)
    assert set(answer) == {"Result"}
    assert FULL["prompt"] not in answer["Result"]


@pytest.mark.parametrize("prefix", ["Once ", "<|system|>Be kind.<|end|>"])
def test_a_prefix_is_that_of_kaitos_pipeline(client: TestClient, oracle: Any, prefix: str) -> None:
    lengths = {"do_sample": False, "max_length": 40}
    expected = oracle(PROMPT, prefix=prefix, **lengths)[0]["generated_text"]
    assert ask(client, {"prompt": PROMPT, "prefix": prefix, "generate_kwargs": lengths}) == {"Result": expected}


def test_hole_is_that_of_kaitos_pipeline(client: TestClient, oracle: Any) -> None:
    prompt = "the knight " * 1100
    kwargs = {"do_sample": False, "max_new_tokens": 30}
    expected = oracle(prompt, handle_long_generation="hole", return_full_text=False, **kwargs)[0]["generated_text"]
    body = {"prompt": prompt, "return_full_text": False, "generate_kwargs": kwargs}
    assert ask(client, {**body, "handle_long_generation": "hole"}) == {"Result": expected}
    assert "context holds 2048" in ask(client, body, 400)["detail"]


def test_several_sequences_are_joined_and_given_one_by_one(client: TestClient, oracle: Any) -> None:
    kwargs = {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    expected = [row["generated_text"] for row in oracle(PROMPT, **kwargs)]
    answer = ask(client, {"prompt": PROMPT, "generate_kwargs": kwargs})
    assert answer == {"Result": "".join(expected), "Results": expected}


def test_groups_of_beams(client: TestClient) -> None:
    kwargs = {**GREEDY, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 4}
    answer = ask(client, {"prompt": PROMPT, "return_full_text": False, "generate_kwargs": kwargs})
    assert len(set(answer["Results"])) > 2
    assert "".join(answer["Results"]) == answer["Result"]


def test_earlier_calls_and_results_are_turns(client: TestClient) -> None:
    """As in OpenAI's chat."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    question = {"role": "user", "content": [{"type": "text", "text": "b"}], "unknown": 1}
    with_calls = [
        question,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "d"},
    ]
    as_text = [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": '[{"name": "f", "arguments": {"a": 1}}]'},
        {"role": "user", "content": "Result of f:\nd"},
    ]
    answers = [ask(client, {"messages": turns, "generate_kwargs": GREEDY}) for turns in (with_calls, as_text)]
    assert answers[0] == answers[1]
    body = {"model": "tested", "messages": with_calls[1:], "max_tokens": 24, "temperature": 0}
    same = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert ask(client, {"messages": with_calls[1:], "generate_kwargs": GREEDY})["Result"] == same


def test_messages_get_the_reply_alone(client: TestClient, oracle: Any) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who are you?"},
    ]
    expected = oracle(messages, return_full_text=False, **GREEDY)[0]["generated_text"]
    assert ask(client, {"messages": messages, "generate_kwargs": GREEDY}) == {"Result": expected}


def test_details_when_asked_for(client: TestClient) -> None:
    kwargs = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    answer = ask(client, {"prompt": PROMPT, "generate_kwargs": kwargs})
    (sequence,) = answer["Details"]["sequences"]
    assert len(sequence["token_ids"]) == len(sequence["scores"]) == 24
    assert sequence["finish_reason"] == "length"
    assert answer["Details"]["usage"] == {"prompt_tokens": 18, "completion_tokens": 24}


def completion_tokens(client: TestClient, body: dict[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and answer, with an answer that no end-of-sequence token stops."""
    body = {"prompt": PROMPT, **body}
    if body.get("generate_kwargs", {}) is not None:
        body["generate_kwargs"] = {
            **body.get("generate_kwargs", {}),
            "return_dict_in_generate": True,
            **ENDLESS,
        }
    usage = ask(client, body)["Details"]["usage"]
    return usage["prompt_tokens"], usage["completion_tokens"]


def test_the_default_length_is_200_with_the_prompt(client: TestClient) -> None:
    assert completion_tokens(client, {}) == (18, 182)


def test_fields_and_generate_kwargs_win_over_defaults(client: TestClient) -> None:
    assert completion_tokens(client, {"max_tokens": 5}) == (18, 5)
    assert completion_tokens(client, {"max_tokens": 5, "generate_kwargs": {"max_new_tokens": 5}}) == (18, 5)
    assert completion_tokens(client, {"max_tokens": 5, "generate_kwargs": {"max_length": 30}}) == (18, 5)
    first = ask(client, {"prompt": PROMPT, "top_k": 1, "max_tokens": 9})
    assert first == ask(client, {"prompt": PROMPT, "generate_kwargs": {"do_sample": False, "max_new_tokens": 9}})


def test_null_generate_kwargs_mean_the_models_own_config(client: TestClient, oracle: Any) -> None:
    """No max_length 200, no sampling: transformers' twenty greedy tokens."""
    expected = oracle(PROMPT, do_sample=False, max_new_tokens=20)[0]["generated_text"]
    assert ask(client, {"prompt": PROMPT, "generate_kwargs": None}) == {"Result": expected}


def test_the_default_samples_and_a_seed_repeats(client: TestClient) -> None:
    drawn = {"prompt": PROMPT, "generate_kwargs": ENDLESS}
    assert len({ask(client, drawn)["Result"] for _ in range(4)}) > 1
    seeded = {"prompt": PROMPT, "generate_kwargs": {"seed": 5}}
    assert ask(client, seeded) == ask(client, seeded)


def test_what_known_clients_send(client: TestClient) -> None:
    """The AKS extension's body, and the Terraform sample's float top_k."""
    extension = {
        "model": "tested",
        "prompt": PROMPT,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.1,
        "max_tokens": 10,
    }
    assert set(ask(client, extension)) == {"Result"}
    assert set(ask(client, {"prompt": PROMPT, "generate_kwargs": {"top_k": 10.0, "max_length": 4096, **GREEDY}})) == {
        "Result"
    }
    unknown = ask(client, {"prompt": PROMPT, "somebody_elses_field": 1, "max_tokens": 2})
    assert unknown["warnings"] == ["`somebody_elses_field` is not a field; it had no effect."]


def test_clean_up(client: TestClient) -> None:
    from phi3_serve.text.detokenize import clean_up

    body = {"prompt": PROMPT, "return_full_text": False, "generate_kwargs": {**GREEDY, "max_new_tokens": 150}}
    plain = ask(client, body)["Result"]
    cleaned = ask(client, {**body, "clean_up_tokenization_spaces": True})["Result"]
    assert cleaned == clean_up(plain)
    assert (
        "".join(e["Delta"] for _, e in events(client, {**body, "clean_up_tokenization_spaces": True})[:-2]) == cleaned
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": False, "max_new_tokens": 150},
        {"do_sample": False, "max_new_tokens": 1},
        {"num_beams": 3, "do_sample": False, "max_new_tokens": 20},
        {"num_return_sequences": 2, "seed": 3, "max_new_tokens": 20},
    ],
)
@pytest.mark.parametrize("full_text", [True, False])
def test_a_stream_tells_the_same_as_the_plain_call(client: TestClient, kwargs: dict[str, Any], full_text: bool) -> None:
    body = {"prompt": PROMPT, "return_full_text": full_text, "generate_kwargs": kwargs}
    plain = ask(client, body)
    *deltas, last, done = events(client, body)
    assert done == ("message", "DONE")
    assert last == ("message", plain)
    assert "".join(event["Delta"] for _, event in deltas) == plain["Result"]


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ({}, 400, "Text generation parameter prompt required"),
        ({"prompt": ""}, 400, "Text generation parameter prompt required"),
        ({"prompt": None}, 400, "Text generation parameter prompt required"),
        ({"messages": []}, 400, "Conversational parameter messages required"),
        (
            {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
            400,
            "`prompt` and `messages` exclude each other; send one of them.",
        ),
        (
            {"prompt": "a", "generate_kwargs": {"additional_param": 1}},
            400,
            "`additional_param` is not a generate parameter.",
        ),
        (
            {"prompt": "a", "generate_kwargs": {"temprature": 1}},
            400,
            "`temprature` is not a generate parameter; did you mean `temperature`?",
        ),
        (
            {"prompt": "a", "generate_kwargs": {"penalty_alpha": 0.6, "top_k": 4}},
            400,
            "`penalty_alpha` is not accepted: contrastive search is not offered.",
        ),
        (
            {"prompt": "a", "model": "testing"},
            404,
            "Model testing is not served here; did you mean tested?",
        ),
        (
            {"messages": [{"role": "user", "content": "b"}, {"role": "tool", "tool_call_id": "c", "content": "d"}]},
            400,
            "`messages.1.tool_call_id` is 'c'; it must be the id of a call in an earlier message.",
        ),
        ({"prompt": "a", "model": "gpt-2"}, 404, "Model gpt-2 is not served here; served are tested."),
        (
            {"prompt": "a b c d e f", "generate_kwargs": {"max_length": 3}},
            400,
            "Input length of input_ids is 6, but `max_length` is set to 3. `max_length` counts prompt and answer "
            "together: increase it, or set `max_new_tokens`.",
        ),
        (
            {"prompt": "a", "generate_kwargs": {"num_beams": 4, "num_beam_groups": 3}},
            400,
            "`num_beam_groups` is 3, but has to divide `num_beams`, which is 4.",
        ),
        (
            {"prompt": "a", "generate_kwargs": {"suppress_tokens": [40000]}},
            400,
            "`suppress_tokens` holds token id 40000; this model's ids go from 0 to 703.",
        ),
    ],
)
def test_a_refusal_says_why(client: TestClient, body: dict[str, Any], status: int, detail: str) -> None:
    assert ask(client, body, status) == {"detail": detail}


@pytest.mark.parametrize(
    ("body", "loc", "message"),
    [
        ({"prompt": 3}, ["prompt"], "Input should be a valid string"),
        ({"prompt": ["a"]}, ["prompt"], "Input should be a valid string"),
        ({"prompt": "a", "generate_kwargs": []}, ["generate_kwargs"], "This must be a JSON object."),
        ({"prompt": "a", "generate_kwargs": {"top_k": 10.5}}, ["generate_kwargs", "top_k"], "Input should be a valid integer, got a number with a fractional part; allowed: whole number, at least -1"),
        ({"prompt": "a", "generate_kwargs": {"top_k": True}}, ["generate_kwargs", "top_k"], "`top_k` does not take true or false; allowed: whole number, at least -1"),
        ({"prompt": "a", "top_k": True}, ["top_k"], "`top_k` does not take true or false; allowed: whole number, at least -1"),
        ({"prompt": "a", "top_p": 1.5}, ["top_p"], "Input should be less than or equal to 1; allowed: number, at least 0, at most 1"),
        ({"prompt": "a", "generate_kwargs": {"top_p": 1.5}}, ["generate_kwargs", "top_p"], "Input should be less than or equal to 1; allowed: number, at least 0, at most 1"),
        ({"prompt": "a", "generate_kwargs": {"num_beams": 0}}, ["generate_kwargs", "num_beams"], "Input should be greater than or equal to 1; allowed: whole number, at least 1, at most 64"),
        ({"prompt": "a", "generate_kwargs": {"num_beams": 10**9}}, ["generate_kwargs", "num_beams"], "Input should be less than or equal to 64; allowed: whole number, at least 1, at most 64"),
        ({"prompt": "a", "generate_kwargs": {"temperature": "abc"}}, ["generate_kwargs", "temperature"], "Input should be a valid number, unable to parse string as a number; allowed: number, at least 0"),
        ({"prompt": "a", "generate_kwargs": {"bad_words_ids": [[]]}}, ["generate_kwargs", "bad_words_ids", 0], "List should have at least 1 item, not 0; allowed: list (1 to 1024 items) of whole number, at least 0"),
        ({"prompt": "a", "exponential_decay_length_penalty": "x"}, ["exponential_decay_length_penalty"], "Input should be a valid list; allowed: [whole number, at least 0; number, above 0]"),
        ({"prompt": "a", "logit_bias": "x"}, ["logit_bias"], "Input should be a valid list; allowed: object (0 to 1024 items) of number"),
        ({"prompt": "a", "max_tokens": "x"}, ["max_tokens"], "Input should be a valid integer, unable to parse string as an integer; allowed: whole number, at least 1 or `-1`"),
        ({"prompt": "a", "generate_kwargs": {"stop": 5}}, ["generate_kwargs", "stop"], "Input should be a valid string; or: Input should be a valid list; allowed: text (1 to 256 characters) or list (0 to 256 items) of text (1 to 256 characters)"),
        ({"prompt": "a", "exponential_decay_length_penalty": [1, 2, 3]}, ["exponential_decay_length_penalty"], "List should have at most 2 items, not 3; allowed: [whole number, at least 0; number, above 0]"),
        ({"prompt": "a", "handle_long_generation": "truncate"}, ["handle_long_generation"], "Input should be 'hole'"),
        ({"messages": [{"role": "root", "content": "a"}]}, ["messages", 0, "role"], "Input should be 'system', 'developer', 'user', 'assistant', 'tool' or 'function'"),
        ({"messages": [{"role": "user"}]}, ["messages", 0, "content"], "Only an assistant's content may be null; here a text is required."),
        ({"messages": [{"role": "user", "content": None}]}, ["messages", 0, "content"], "Only an assistant's content may be null; here a text is required."),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}]}, ["messages", 0, "tool_calls", 0, "function"], "Field required"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, ["messages", 0, "content", 0], "Pictures are not offered: the model reads text only."),
        ({"messages": [{"role": "user", "content": "", "images": ["aGk="]}]}, ["messages", 0, "images"], "This must be null or empty: the model reads text only."),
        ({"prompt": "a", "stream": "perhaps"}, ["stream"], "Input should be a valid boolean, unable to interpret input"),
    ],
)  # fmt: skip
def test_a_wrong_type_or_range_names_the_field(client: TestClient, body: Any, loc: list[Any], message: str) -> None:
    (problem,) = ask(client, body, 422)["detail"]
    assert (problem["loc"], problem["msg"]) == (["body", *loc], message)


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (
            b"{prompt:YOUR QUESTION HERE}",
            "application/json",
            422,
            "The body is not JSON at character 1: Expecting property name enclosed in double quotes. "
            "Check the quoting of your shell.",
        ),
        (b"", "application/json", 422, "The body is empty; send a JSON object."),
        (b"null", "application/json", 422, "This must be a JSON object."),
        (b"[]", "application/json", 422, "This must be a JSON object."),
        (
            b'{"prompt": "a"}',
            "application/x-www-form-urlencoded",
            422,
            "The Content-Type header must be application/json; it is application/x-www-form-urlencoded.",
        ),
        (
            b'{"prompt": "\\ud800"}',
            "application/json",
            422,
            "The text holds half of a surrogate pair, which is no character.",
        ),
        (
            b'{"prompt": "a", "generate_kwargs": {"temperature": NaN}}',
            "application/json",
            422,
            "Input should be a finite number; allowed: number, at least 0",
        ),
    ],
)
def test_a_broken_body_is_explained(
    client: TestClient, content: bytes, content_type: str, status: int, message: str
) -> None:
    response = client.post("/chat", content=content, headers={"Content-Type": content_type})
    assert response.status_code == status
    assert [problem["msg"] for problem in response.json()["detail"]] == [message]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 99_000, "The body is not read: its lists or objects are nested too deeply."),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "The body is not read: a number in it has more than 4300 digits."),
        (b'{"prompt": "\xff"}', "The body is not UTF-8 text: invalid start byte at byte 12."),
    ],
    ids=["deep", "long number", "no UTF-8"],
)
def test_a_body_that_breaks_parsers_is_the_clients_fault(client: TestClient, content: bytes, message: str) -> None:
    response = client.post("/chat", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()) == (400, {"detail": message})


def test_a_null_is_the_default(client: TestClient) -> None:
    """KAITO's schema has null for these fields."""
    nulls = dict.fromkeys(("return_full_text", "clean_up_tokenization_spaces", "stream", "prefix", "model"))
    kwargs = {"do_sample": False, "max_new_tokens": 3}
    plain = {"prompt": PROMPT, "generate_kwargs": kwargs}
    assert ask(client, {**plain, **nulls}) == ask(client, plain)


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(client: TestClient, chunked: bool) -> None:
    content: Any = iter([b'{"prompt": "', *[b"a" * 1000] * 200, b'"}']) if chunked else b" " * 200_000
    response = client.post("/chat", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert response.json() == {"detail": "The body is larger than 100,000 bytes."}


def test_the_path_names_the_model_and_wins(client: TestClient) -> None:
    body = {"prompt": PROMPT, "model": "somebody-elses", "generate_kwargs": GREEDY}
    assert client.post("/tested/chat", json=body).json() == ask(client, {**body, "model": "tested"})
    missing = client.post("/nothing/chat", json=body)
    assert (missing.status_code, missing.json()) == (
        404,
        {"detail": "Model nothing is not served here; served are tested."},
    )


CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (CHROME, True),
        ("text/html", True),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("application/json;q=0.5, TEXT/HTML; q=0.9", True),
        ("text/html;q=0", False),
        ("text/html;q=x", False),
        ("", False),
    ],
)
def test_a_browser_is_sent_from_the_root_to_the_page(client: TestClient, accept: str, is_page: bool) -> None:
    answer = client.get("/", headers={"Accept": accept}, follow_redirects=False)
    assert answer.headers["vary"] == "Accept"
    if is_page:
        assert (answer.status_code, answer.headers["location"]) == (307, "/ui")
    else:
        assert (answer.status_code, answer.json()) == (200, {"message": "Server is running"})


def test_the_page_is_found_behind_a_route_prefix(backend: LocalBackend, config: AppConfig) -> None:
    with TestClient(create_app(backend, config), root_path="/phi3") as client:
        page = client.get("/phi3/", headers={"Accept": CHROME})
    assert (page.status_code, page.url.path) == (200, "/phi3/ui")


def test_other_routes(client: TestClient) -> None:
    assert client.get("/").json() == {"message": "Server is running"}
    assert client.get("/health").json() == {"status": "Healthy"}
    assert client.get("/ready").json() == {"ready": True, "models": {"tested": {"state": "ready"}}}
    metrics = client.get("/metrics").json()
    assert metrics["gpu_info"] is None
    assert metrics["cpu_info"]["memory"]["total"].endswith(" GB")
    assert [client.head(path).status_code for path in ("/", "/health", "/ready")] == [200, 200, 200]
    wrong_method = client.get("/chat")
    assert wrong_method.status_code == 405
    assert wrong_method.headers["allow"] == "POST"
    assert wrong_method.json() == {"detail": "/chat takes POST, not GET."}
    assert client.post("/").json() == {"detail": "/ takes GET, HEAD, not POST."}
    nowhere = {"detail": "GET /nowhere is not an endpoint of this server; /docs lists all."}
    assert client.get("/nowhere").json() == nowhere
    assert "max_new_tokens" in client.get("/docs").text


def test_metrics_for_prometheus(backend: LocalBackend, config: AppConfig) -> None:
    client = TestClient(create_app(backend, config))
    client.post("/chat", json={"prompt": PROMPT, "generate_kwargs": GREEDY})
    events(client, {"prompt": PROMPT, "generate_kwargs": GREEDY})
    client.post("/chat", json={"prompt": PROMPT, "generate_kwargs": {"eos_token_id": 9999}})
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    response = client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/plain; version=")
    figures = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert figures['phi3_serve_requests_total{model_name="tested",outcome="success"}'] == "2.0"
    assert figures['phi3_serve_requests_total{model_name="tested",outcome="InvalidRequest"}'] == "1.0"
    assert figures['phi3_serve_request_generation_tokens_sum{model_name="tested"}'] == "48.0"
    assert figures['phi3_serve_request_prompt_tokens_sum{model_name="tested"}'] == "36.0"
    assert figures['phi3_serve_num_requests_in_flight{model_name="tested"}'] == "0.0"
    ended = {
        r: f'phi3_serve_e2e_request_latency_seconds_count{{finished_reason="{r}",model_name="tested"}}'
        for r in ("length", "error")
    }
    assert (figures[ended["length"]], figures[ended["error"]]) == ("2.0", "1.0")
    assert figures['phi3_serve_time_to_first_token_seconds_count{model_name="tested"}'] == "1.0"  # of the stream
    assert figures['phi3_serve_model_state{model_name="tested",state="ready"}'] == "1.0"
    assert figures['phi3_serve_model_state{model_name="tested",state="failed"}'] == "0.0"
    assert figures['phi3_serve_refusals_total{refused_by="key"}'] == "0.0"  # before the first one
    assert set(client.get("/metrics").json()) == {"gpu_info", "cpu_info"}


ENGINE = EngineInfo(
    device="NVIDIA H100",
    compute_capability="9.0",
    dtype="bfloat16",
    weight_dtype="bfloat16",
    quantization="none",
    kv_cache_dtype="float32",
    kernels="cuda",
    cuda_graphs=True,
    flash_attention="from 512 tokens over 2048 keys",
    replaced_kernels={"attend": "RuntimeError: out of resource"},
    cache_tokens=330_000,
    cache_bytes=64,
    weight_bytes=128,
    weight_format="safetensors: BF16",
)


def test_what_a_ready_model_runs_on_is_shown(backend: LocalBackend, config: AppConfig) -> None:
    client = TestClient(create_app(backend, config))
    before = dict(backend.state_of)
    backend.state_of["tested"] = VariantState("ready", engine=ENGINE)
    assert client.get("/ready").json()["models"] == {
        "tested": {
            "state": "ready",
            "engine": {
                "device": "NVIDIA H100",
                "compute_capability": "9.0",
                "dtype": "bfloat16",
                "weight_dtype": "bfloat16",
                "quantization": "none",
                "kv_cache_dtype": "float32",
                "kernels": "cuda",
                "cuda_graphs": True,
                "flash_attention": "from 512 tokens over 2048 keys",
                "replaced_kernels": {"attend": "RuntimeError: out of resource"},
                "cache_tokens": 330_000,
                "cache_bytes": 64,
                "weight_bytes": 128,
                "weight_format": "safetensors: BF16",
            },
        }
    }
    text = client.get("/metrics", headers={"Accept": "text/plain"}).text.splitlines()
    of_model = 'model_name="tested"'
    for line in (
        'phi3_serve_engine_info{compute_capability="9.0",device="NVIDIA H100",dtype="bfloat16",kernels="cuda",'
        + of_model
        + ',quantization="none"} 1.0',
        f"phi3_serve_num_kernels_replaced{{{of_model}}} 1.0",
        f"phi3_serve_kv_cache_tokens{{{of_model}}} 330000.0",
    ):
        assert line in text
    backend.state_of.update(before)
    asleep = client.get("/metrics", headers={"Accept": "text/plain"}).text
    assert "NVIDIA" not in asleep
    assert "phi3_serve_kv_cache_tokens{" not in asleep


def test_the_counters_need_no_state_of_the_cluster(
    backend: LocalBackend, config: AppConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unknown() -> Mapping[str, VariantState]:
        raise ModelUnavailable("The state of the cluster cannot be read now.", 10)

    monkeypatch.setattr(backend, "states", unknown)
    response = TestClient(create_app(backend, config)).get("/metrics", headers={"Accept": "text/plain"})
    assert response.status_code == 200
    assert "phi3_serve_requests" in response.text


def test_the_openapi_document_lists_every_parameter_with_its_meaning(client: TestClient) -> None:
    from phi3_serve.parameters import NAMES

    schema = client.get("/openapi.json").json()["components"]["schemas"]
    properties = schema["GenerationParameters"]["properties"]
    assert set(properties) == set(NAMES)
    assert all(entry["description"] for entry in properties.values())
    assert all("description" in entry for entry in schema["ChatRequest"]["properties"].values())


@pytest.fixture
def state(backend: LocalBackend) -> Iterator[dict[str, VariantState]]:
    before = dict(backend.state_of)
    yield backend.state_of
    backend.state_of.update(before)


def test_readiness_and_health_tell_apart_loading_and_failed(client: TestClient, state: dict[str, VariantState]) -> None:
    state["tested"] = VariantState("loading", "Its replica is starting.", 10)
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()) == (
        503,
        {"ready": False, "models": {"tested": {"state": "loading", "detail": "Its replica is starting."}}},
    )
    assert client.get("/health").status_code == 200
    state["tested"] = VariantState("failed", "/x: file is missing")
    health = client.get("/health")
    assert (health.status_code, health.json()) == (
        500,
        {"detail": "Model tested could not be started. /x: file is missing"},
    )


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (ModelUnavailable("Model tested is loading.", 9.2), 503, "10"),
        (ModelUnavailable("Model tested cannot run on this cluster."), 503, None),
        (Overloaded("Too many requests.", 2), 429, "2"),
        (RequestTimeout("The request did not finish in time."), 408, None),
        (EngineFailure("Generation failed."), 500, None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_fails_before_the_first_event_keeps_its_status(
    client: TestClient,
    backend: LocalBackend,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    retry_after: str | None,
    stream: bool,
) -> None:
    async def failing(request: Any) -> Any:
        await asyncio.sleep(0)
        raise error
        yield

    monkeypatch.setattr(backend, "generate", failing)
    response = client.post("/chat", json={"prompt": "a", "stream": stream})
    assert (response.status_code, response.json()) == (status, {"detail": str(error.args[0])})
    assert response.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_without_an_end_is_a_failure(
    client: TestClient, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    async def silent(request: Any) -> Any:
        nothing: tuple[Any, ...] = ()
        for event in nothing:
            yield event

    monkeypatch.setattr(backend, "generate", silent)
    response = client.post("/chat", json={"prompt": "a", "stream": stream})
    assert (response.status_code, response.json()) == (500, {"detail": "The answer broke off before its end."})


def test_what_fails_in_mid_stream_ends_in_an_error_event(
    client: TestClient, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backend.generate

    async def breaking(request: Any) -> Any:
        async for event in real(request):
            yield event
            raise ModelUnavailable("The replica was lost.", 10)

    monkeypatch.setattr(backend, "generate", breaking)
    found = events(client, {"prompt": PROMPT, "return_full_text": False, "generate_kwargs": GREEDY})
    assert found[-1] == ("error", {"detail": "The replica was lost."})
    assert [name for name, _ in found[:-1]] == ["message"]


def test_scores_that_are_no_numbers_are_null(config: AppConfig) -> None:
    from phi3_serve.api.adapters import NamedModel
    from phi3_serve.api.kaito.answers import chat_response
    from phi3_serve.api.kaito.requests import generation_request
    from phi3_serve.api.kaito.schema import ChatRequest
    from phi3_serve.core.completion import Completion
    from phi3_serve.core.event import Done
    from phi3_serve.core.generated_sequence import GeneratedSequence
    from phi3_serve.core.generation_request import RequestOptions
    from phi3_serve.core.usage import Usage

    body = ChatRequest.model_validate({"prompt": "a", "generate_kwargs": {"output_scores": True}})
    request = generation_request(body, model=NamedModel("tested"), request_id="r", options=RequestOptions(timeout_s=1))
    sequence = GeneratedSequence((5, 6), "stop", (-0.5, float("-inf")))
    answer = chat_response(Done((Completion("b", sequence),), Usage(1, 2)), body, request)
    assert json.loads(json.dumps(answer, allow_nan=False))["Details"]["sequences"][0]["scores"] == [-0.5, None]
