"""vLLM's parameters of text and prompt over HTTP: plain and streamed answers, text and log-probabilities."""

from typing import Any

import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from phi3_serve.core.prompt import RawPrompt
from phi3_serve.serving.replica import Replica
from tests.support import ENDLESS, tokenizer_of

PROMPT = "<|user|> How to explain Internet for a medieval knight?<|end|><|assistant|>"
NO_BYTES = {"suppress_tokens": [*range(3, 259), 703], "eos_token_id": 703}  # each token has a text of its own
ASKED: dict[str, Any] = {"model": "tested", "prompt": PROMPT, "temperature": 0, "max_tokens": 16, **NO_BYTES}


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    """The only choice; a stream must say the same."""
    body = {**ASKED, "logprobs": 0, **fields}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    streamed = OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)
    chunks = list(streamed.completions.create(stream=True, extra_body=body, model="tested", prompt=PROMPT))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice["text"]
    assert chunks[-1].choices[0].finish_reason == choice["finish_reason"]
    return choice


@pytest.fixture(scope="module")
def tokens(client: TestClient) -> list[str]:
    """The texts of the tokens of the plain answer."""
    choice = complete(client)
    found: list[str] = choice["logprobs"]["tokens"]
    assert "".join(found) == choice["text"]
    return found


def test_a_stop_string_may_stay(client: TestClient, tokens: list[str]) -> None:
    text = "".join(tokens)
    stop = tokens[5]
    end = text.index(stop)
    assert complete(client, stop=stop)["text"] == text[:end]
    for name in ("include_stop_str_in_output", "no_stop_trim"):
        choice = complete(client, stop=stop, **{name: True})
        assert (choice["text"], choice["finish_reason"]) == (text[: end + len(stop)], "stop")


def test_no_stop_string_ends_in_the_minimum(client: TestClient, tokens: list[str]) -> None:
    stop = tokens[0]
    assert complete(client, stop=stop)["text"] == ""
    choice = complete(client, stop=stop, min_tokens=1)
    later = "".join(tokens).find(stop, len(stop))
    expected = ("".join(tokens)[:later], "stop") if later >= 0 else ("".join(tokens), "length")
    assert (choice["text"], choice["finish_reason"]) == expected
    assert complete(client, stop=stop, min_tokens=16)["text"] == "".join(tokens)


def test_a_stop_string_does_not_begin_in_the_prompt(client: TestClient, tokens: list[str]) -> None:
    stop = "|assistant|>" + tokens[0]
    assert complete(client, stop=stop)["text"] == "".join(tokens)
    kept = complete(client, stop_strings=stop)
    assert (kept["text"], kept["finish_reason"]) == (tokens[0], "stop")


def test_stop_and_stop_strings_together(client: TestClient, tokens: list[str]) -> None:
    text = "".join(tokens)
    early, late = tokens[3], tokens[9]
    end = text.index(early) + len(early)
    assert complete(client, stop=late, stop_strings=early)["text"] == text[: min(end, text.index(late))]


def test_stop_token_ids_are_left_out_of_the_text(client: TestClient, replica: Replica, tokens: list[str]) -> None:
    (stop,) = tokenizer_of(replica)._tokenizer.encode(tokens[6].strip(), add_special_tokens=False).ids[-1:]
    details = {"return_dict_in_generate": True, "return_full_text": False, "temperature": 1, "do_sample": False}
    body = {"prompt": PROMPT, "max_tokens": 16, **NO_BYTES, **details}
    ids = client.post("/chat", json=body).json()["Details"]["sequences"][0]["token_ids"]
    stop = ids[6]
    first = ids.index(stop)
    choice = complete(client, stop_token_ids=[stop])
    assert (choice["text"], choice["finish_reason"]) == ("".join(tokens[:first]), "stop")
    assert choice["logprobs"]["tokens"] == tokens[:first]
    kept = complete(client, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert kept["text"] == "".join(tokens[: first + 1])
    kaito = client.post("/chat", json={**body, "stop_token_ids": [stop]}).json()
    assert kaito["Result"] == "".join(tokens[:first])
    assert kaito["Details"]["sequences"][0]["token_ids"] == ids[: first + 1]


def test_control_tokens_are_shown(client: TestClient) -> None:
    forced = {"logit_bias": {"1": 100}, "max_tokens": 3, "ignore_eos": True}
    assert complete(client, **forced)["text"] == ""
    shown = complete(client, **forced, skip_special_tokens=False)
    assert shown["text"] == "<s><s><s>"
    assert shown["logprobs"]["tokens"] == ["<s>"] * 3
    for spaces in (True, False):
        choice = complete(client, **forced, skip_special_tokens=False, spaces_between_special_tokens=spaces)
        assert choice["text"] == "<s><s><s>"


@pytest.mark.parametrize(("keeps", "text"), [(False, ""), (True, "<s>")])
def test_the_control_token_at_the_end(client: TestClient, keeps: bool, text: str) -> None:
    forced = {"logit_bias": {"1": 100}, "eos_token_id": 1, "skip_special_tokens": False}
    choice = complete(client, **forced, include_stop_str_in_output=keeps)
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/chat"])
def test_a_long_prompt_is_truncated(client: TestClient, path: str) -> None:
    content = "a knight " * 3000
    text = {"messages": [{"role": "user", "content": content}]} if path != "/v1/completions" else {"prompt": content}
    body = {"model": "tested", **text, "max_tokens": 4, "return_dict_in_generate": True, **ENDLESS}
    assert client.post(path, json=body).status_code == 400
    for num_kept, expected in ((100, 100), (-1, 2044)):
        content = client.post(path, json={**body, "truncate_prompt_tokens": num_kept}).json()
        usage = content["Details"]["usage"] if path == "/chat" else content["usage"]
        assert usage["prompt_tokens"] == expected


def test_the_end_of_a_prompt_is_kept(client: TestClient, replica: Replica) -> None:
    ids = tokenizer_of(replica).encode(RawPrompt(PROMPT))
    expected = complete(client, prompt=ids[-5:])["text"]
    assert complete(client, prompt=ids, truncate_prompt_tokens=5)["text"] == expected
    assert complete(client, prompt=ids[:5])["text"] == complete(
        client, prompt=ids, truncate_prompt_tokens=5, truncation_side="right"
    )["text"]  # fmt: skip
    error = client.post("/v1/completions", json={**ASKED, "truncate_prompt_tokens": 0}).json()["error"]
    assert error["message"] == "The prompt holds no token."


def test_bad_words_are_not_said(client: TestClient, replica: Replica, tokens: list[str]) -> None:
    def is_one_token(word: str) -> bool:
        return word[0] == " " and all(len(ids) == 1 for ids in tokenizer_of(replica).bad_words_ids([word]))

    word = next(token for token in tokens if is_one_token(token))
    said = complete(client, bad_words=[word])["logprobs"]["tokens"]
    before = tokens.index(word)
    assert said[:before] == tokens[:before]
    assert word not in said


def test_beam_search_of_vllm(client: TestClient) -> None:
    """``n`` beams that go on until no better answer is possible."""
    body = {"model": "tested", "prompt": PROMPT, "max_tokens": 12, "n": 3}
    beams = {"num_beams": 3, "early_stopping": "never", "do_sample": False}
    expected = client.post("/v1/completions", json={**body, **beams}).json()["choices"]
    assert len(expected) == 3
    for given in ({"use_beam_search": True}, {"generate_kwargs": {"use_beam_search": True}}):
        assert client.post("/v1/completions", json={**body, **given}).json()["choices"] == expected
    wider = {**body, "n": 1, "num_beams": 3, "early_stopping": "never"}
    assert client.post("/v1/completions", json={**wider, "use_beam_search": True}).json()["choices"] == expected[:1]
    error = client.post("/v1/completions", json={**body, "use_beam_search": "yes"}).json()["error"]
    assert (error["param"], error["message"]) == ("use_beam_search", "`use_beam_search` takes true or false.")
    assert client.post("/v1/completions", json={**body, "use_beam_search": False}).status_code == 200
    sampled = {**body, "use_beam_search": True, "do_sample": True}
    assert client.post("/v1/completions", json=sampled).json()["error"]["message"] == (
        "`use_beam_search` does not sample; leave out `do_sample`, or send `num_beams` to sample beams."
    )
    (error,) = client.post("/chat", json={"prompt": "x", "use_beam_search": True, "n": 70}).json()["detail"]
    assert error["loc"] == ["body", "n"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_best_of_several_answers(client: TestClient, path: str) -> None:
    """The order is that of the log-probability per token."""
    is_chat = path != "/v1/completions"
    text = {"messages": [{"role": "user", "content": "hi"}]} if is_chat else {"prompt": ["Once", "The knight"]}
    body = {"model": "tested", **text, "max_tokens": 6, "seed": 3, **NO_BYTES}

    def texts(content: dict[str, Any]) -> list[str]:
        return [choice["message"]["content"] if is_chat else choice["text"] for choice in content["choices"]]

    def score(choice: dict[str, Any]) -> float:
        found = choice["logprobs"]
        logprobs = [t["logprob"] for t in found["content"]] if is_chat else found["token_logprobs"]
        return float(sum(logprobs) / len(logprobs))

    every = client.post(path, json={**body, "n": 5, "logprobs": is_chat or 0}).json()
    choices, expected = every["choices"], []
    for first in range(0, len(choices), 5):
        ranked = sorted(choices[first : first + 5], key=score, reverse=True)
        expected += texts({"choices": ranked[:2]})
    best = client.post(path, json={**body, "n": 2, "best_of": 5}).json()
    assert texts(best) == expected
    assert [choice["index"] for choice in best["choices"]] == list(range(len(expected)))
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert best["usage"] == every["usage"]
    scored = client.post(path, json={**body, "n": 2, "best_of": 5, "logprobs": is_chat or 2}).json()
    assert all(choice["logprobs"] for choice in scored["choices"])
    for wrong, message in (
        ({"best_of": 1, "n": 2}, "`best_of` is 1, but must be at least the number of answers, 2."),
        ({"best_of": 2, "stream": True}, "`best_of` is not offered with `stream`"),
        ({"best_of": 65}, "less than or equal to 64"),
    ):
        error = client.post(path, json={**body, **wrong}).json()["error"]
        assert message in error["message"]
        assert error["param"] == "best_of"
    streamed = client.post(path, json={**body, "best_of": 1, "stream": True})
    assert streamed.status_code == 200


def test_repeat_penalty_looks_at_64_tokens(client: TestClient) -> None:
    body = {**ASKED, "max_tokens": 100, **ENDLESS}
    window = {"repetition_penalty": 1.3, "repeat_last_n": 64}

    def text(**given: Any) -> str:
        return str(client.post("/v1/completions", json={**body, **given}).json()["choices"][0]["text"])

    assert text(repeat_penalty=1.3) == text(**window) != text(repetition_penalty=1.3)
    assert text(repeat_penalty=1.3, repeat_last_n=-1) == text(repetition_penalty=1.3)
