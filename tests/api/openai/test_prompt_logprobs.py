"""Scored and echoed prompts, and token ids, over HTTP: what lm-evaluation-harness and vLLM's clients ask for."""

import json
from typing import Any

import pytest
import torch
from openai import OpenAI
from starlette.testclient import TestClient

from phi3_serve.core.prompt import Conversation, Message, RawPrompt
from phi3_serve.serving.replica import Replica
from tests.support import ENDLESS, tokenizer_of

PROMPT = "<|user|> How to explain Internet\n for a medieval knight? é😀<|end|>\n<|assistant|> One"
QUESTION: list[Any] = [{"role": "user", "content": "How to explain Internet for a medieval knight?"}]
TOLERANCE = 1e-4


def post(client: TestClient, path: str = "/v1/completions", /, **body: Any) -> Any:
    response = client.post(path, json={"model": "tested", "temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, path: str = "/v1/completions", /, **body: Any) -> tuple[str, str]:
    response = client.post(path, json={"model": "tested", **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    return error["param"], error["message"]


@pytest.fixture(scope="module")
def sdk(client: TestClient) -> OpenAI:
    return OpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)


def log_softmax(oracle: Any, ids: list[int]) -> Any:
    with torch.inference_mode():
        return oracle.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


def expect_scores(oracle: Any, ids: list[int], logprobs: Any) -> None:
    """The log-probabilities of a completion are those of a forward pass over ``ids``."""
    expected = log_softmax(oracle, ids)
    assert len(logprobs["tokens"]) == len(ids)
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    for position in range(1, len(ids)):
        row = expected[position - 1]
        assert logprobs["token_logprobs"][position] == pytest.approx(row[ids[position]].item(), abs=TOLERANCE)
        best = max(logprobs["top_logprobs"][position].values())
        assert best == pytest.approx(row.max().item(), abs=TOLERANCE)


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("as_ids", [False, True])
def test_an_echoed_prompt_is_scored(
    client: TestClient, replica: Replica, oracle: Any, max_tokens: int, as_ids: bool
) -> None:
    """The requests of lm-evaluation-harness's ``local-completions`` have max_tokens 1, logprobs 1 and echo."""
    tokenizer = tokenizer_of(replica)
    ids = tokenizer.encode(RawPrompt(PROMPT))
    answer = post(client, prompt=ids if as_ids else PROMPT, max_tokens=max_tokens, logprobs=1, echo=True, seed=1234)
    (choice,) = answer["choices"]
    plain = post(client, prompt=PROMPT, max_tokens=max(1, max_tokens), return_token_ids=True)["choices"][0]
    new_ids = plain["token_ids"] if max_tokens else []
    shown = tokenizer._decode_all(ids) if as_ids else PROMPT
    assert choice["text"] == shown + (plain["text"] if max_tokens else "")
    assert choice["finish_reason"] == (plain["finish_reason"] if max_tokens else "length")
    expect_scores(oracle, [*ids, *new_ids], choice["logprobs"])
    count = len(ids)
    assert answer["usage"] == {
        "prompt_tokens": count,
        "completion_tokens": len(new_ids),
        "total_tokens": count + len(new_ids),
    }


def test_offsets_are_the_places_in_the_text(client: TestClient) -> None:
    no_bytes = {"suppress_tokens": [*range(3, 259), 703], "eos_token_id": 703}
    choice = post(client, prompt=PROMPT, max_tokens=8, logprobs=0, echo=True, **no_bytes)["choices"][0]
    logprobs, text = choice["logprobs"], choice["text"]
    offsets = logprobs["text_offset"]
    assert offsets == sorted(offsets)
    for token, offset in zip(logprobs["tokens"], offsets, strict=True):
        assert token == "\N{REPLACEMENT CHARACTER}" or text.startswith(token, offset), (token, offset)
    emoji = [offset for token, offset in zip(logprobs["tokens"], offsets, strict=True) if offset == text.index("😀")]
    assert len(emoji) == 4
    without = post(client, prompt=PROMPT, max_tokens=8, logprobs=0, **no_bytes)["choices"][0]["logprobs"]
    assert [offset + len(PROMPT) for offset in without["text_offset"]] == offsets[-8:]


def test_the_token_after_an_echoed_prompt_is_listed_whatever_it_is(client: TestClient) -> None:
    """lm-evaluation-harness leaves out the last one. If it were missing, a token of the prompt would go."""
    for token in (643, 5, 703):  # a control token, a byte, an id without a text
        bias = {"logit_bias": {str(token): 100}, "eos_token_id": 643}
        asked = {"prompt": "the knight", "max_tokens": 1, "logprobs": 1, "echo": True, "return_token_ids": True, **bias}
        choice = post(client, **asked)["choices"][0]
        assert choice["token_ids"] == [token]
        assert len(choice["logprobs"]["tokens"]) == len(choice["prompt_token_ids"]) + 1


def test_a_batch_of_prompts(client: TestClient, replica: Replica, oracle: Any) -> None:
    texts = [PROMPT, "the knight", "x", PROMPT]
    ids = [tokenizer_of(replica).encode(RawPrompt(text)) for text in texts]
    for prompts in (texts, ids):
        answer = post(client, prompt=prompts, max_tokens=0, logprobs=2, echo=True)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        for of_prompt, choice in zip(ids, answer["choices"], strict=True):
            expect_scores(oracle, of_prompt, choice["logprobs"])
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
        assert answer["usage"]["completion_tokens"] == 0


def test_a_stream_echoes_the_same(client: TestClient, sdk: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tested", "prompt": [PROMPT, "x"], "temperature": 0, "logprobs": 1, "echo": True}
    for max_tokens in (0, 6):
        plain = post(client, **{**asked, "max_tokens": max_tokens})
        streamed: dict[int, list[Any]] = {0: [], 1: []}
        for chunk in sdk.completions.create(stream=True, max_tokens=max_tokens, **asked):
            (choice,) = chunk.choices
            streamed[choice.index].append(choice)
        for choice in plain["choices"]:
            parts = streamed[choice["index"]]
            assert "".join(part.text for part in parts) == choice["text"]
            assert parts[-1].finish_reason == choice["finish_reason"]
            assert all(part.finish_reason is None for part in parts[:-1])
            for name, column in choice["logprobs"].items():
                joined = [one for part in parts if part.logprobs for one in part.logprobs.model_dump()[name]]
                if name == "top_logprobs":
                    assert [one and pytest.approx(one, abs=TOLERANCE) for one in joined] == column
                else:
                    assert joined == pytest.approx(column, abs=TOLERANCE) if "logprobs" in name else joined == column


def test_prompt_logprobs_of_a_completion(client: TestClient, replica: Replica, oracle: Any) -> None:
    ids = tokenizer_of(replica).encode(RawPrompt(PROMPT))
    choice = post(client, prompt=PROMPT, max_tokens=1, prompt_logprobs=3)["choices"][0]
    assert choice["logprobs"] is None
    first, *others = choice["prompt_logprobs"]
    assert first is None
    expected = log_softmax(oracle, ids)
    for row, token_id, of_token in zip(expected, ids[1:], others, strict=False):
        assert next(iter(of_token)) == str(token_id)
        assert of_token[str(token_id)]["logprob"] == pytest.approx(row[token_id].item(), abs=TOLERANCE)
        likeliest = {str(i) for i in row.topk(3).indices.tolist()}
        assert set(of_token) == likeliest | {str(token_id)}
        for known_id, known in of_token.items():
            assert abs(known["rank"] - (row >= row[int(known_id)]).sum().item()) <= 1
            piece = tokenizer_of(replica).piece(int(known_id)).decode(errors="replace")
            # whitespace that a control token swallows is part of it, and not of the token behind it
            assert known["decoded_token"].strip() == piece.strip()
    assert len(others) == len(ids) - 1


def test_prompt_logprobs_of_a_chat(client: TestClient, replica: Replica, oracle: Any) -> None:
    answer = post(
        client, "/v1/chat/completions", messages=QUESTION, max_tokens=2, prompt_logprobs=0, return_token_ids=True
    )
    ids = tokenizer_of(replica).encode(Conversation((Message("user", QUESTION[0]["content"]),)))
    assert answer["prompt_token_ids"] == ids
    expected = log_softmax(oracle, ids)
    assert answer["prompt_logprobs"][0] is None
    for row, token_id, of_token in zip(expected, ids[1:], answer["prompt_logprobs"][1:], strict=False):
        assert of_token[str(token_id)]["logprob"] == pytest.approx(row[token_id].item(), abs=TOLERANCE)
    assert len(answer["choices"][0]["token_ids"]) == 2


def test_prompt_logprobs_of_kaitos_api(client: TestClient) -> None:
    expected = post(client, prompt=PROMPT, max_tokens=1, prompt_logprobs=1, return_token_ids=True)["choices"][0]
    kwargs = {"max_new_tokens": 1, "do_sample": False, "prompt_logprobs": 1}
    for stream in (False, True):
        response = client.post("/chat", json={"prompt": PROMPT, "generate_kwargs": kwargs, "stream": stream})
        if stream:
            details = json.loads(response.text.split("data: ")[-2])["Details"]["prompt"]
        else:
            details = response.json()["Details"]["prompt"]
        assert details["token_ids"] == expected["prompt_token_ids"]
        of_tokens = zip(
            details["logprobs"], details["ranks"], details["token_ids"], expected["prompt_logprobs"], strict=True
        )
        for logprob, rank, token_id, known in of_tokens:
            of_token = known and known[str(token_id)]
            assert (logprob, rank) == ((of_token["logprob"], of_token["rank"]) if of_token else (None, None))


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_token_ids_in_every_chunk(client: TestClient, path: str) -> None:
    asked = {"messages": QUESTION} if "chat" in path else {"prompt": PROMPT}
    body = {**asked, "max_tokens": 30, "return_token_ids": True, "logprobs": True if "chat" in path else 1}
    plain = post(client, path, **body)
    response = client.post(path, json={"model": "tested", "temperature": 0, "stream": True, **body})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    ids = [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])]
    assert ids == plain["choices"][0]["token_ids"]
    holder = chunks[0] if "chat" in path else chunks[0]["choices"][0]
    expected = plain if "chat" in path else plain["choices"][0]
    assert holder["prompt_token_ids"] == expected["prompt_token_ids"]
    assert not any("prompt_token_ids" in {**chunk, **chunk["choices"][0]} for chunk in chunks[1:])
    # text, ids and log-probabilities of a chunk belong together
    for chunk in chunks[:-1]:
        logprobs = chunk["choices"][0]["logprobs"]
        if logprobs and "chat" not in path:
            assert len(logprobs["tokens"]) <= len(chunk["choices"][0]["token_ids"])


def test_tokens_as_ids(client: TestClient) -> None:
    body = {
        "prompt": PROMPT,
        "max_tokens": 6,
        "logprobs": 2,
        "return_tokens_as_token_ids": True,
        "return_token_ids": True,
    }
    choice = post(client, **body)["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{i}" for i in choice["token_ids"]]
    assert all(len(top) in (2, 3) for top in choice["logprobs"]["top_logprobs"])
    chat = {**body, "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
    del chat["prompt"]
    choice = post(client, "/v1/chat/completions", **chat)["choices"][0]
    assert [token["token"] for token in choice["logprobs"]["content"]] == [f"token_id:{i}" for i in choice["token_ids"]]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_the_usage_in_every_chunk(client: TestClient, path: str) -> None:
    asked = {"messages": QUESTION} if "chat" in path else {"prompt": PROMPT}
    body = {**asked, "max_tokens": 40, "n": 2, "seed": 3, "temperature": 1, "return_token_ids": True, **ENDLESS}
    plain = post(client, path, **body)

    def chunks(**options: bool) -> list[Any]:
        response = client.post(path, json={"model": "tested", "stream": True, "stream_options": options, **body})
        return [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]

    for options in ({"continuous_usage_stats": True}, {"continuous_usage_stats": True, "include_usage": True}):
        *of_choices, last = chunks(**options)
        assert (last["choices"], last["usage"]) == ([], plain["usage"])
        num_ids = {0: 0, 1: 0}
        for chunk in of_choices:
            (choice,) = chunk["choices"]
            num_ids[choice["index"]] += len(choice.get("token_ids", []))
            usage = chunk["usage"]
            assert usage["prompt_tokens"] == plain["usage"]["prompt_tokens"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            # a token whose text is held back counts already
            assert num_ids[choice["index"]] <= usage["completion_tokens"] <= 40
        assert num_ids == {0: 40, 1: 40}
    *of_choices, last = chunks(continuous_usage_stats=False, include_usage=True)
    assert {str(chunk["usage"]) for chunk in of_choices} == {"None"}
    assert last["usage"] == plain["usage"]
    for options in ({}, {"include_usage": False, "continuous_usage_stats": True}, {"continuous_usage_stats": False}):
        assert not any("usage" in chunk for chunk in chunks(**options))


def test_what_goes_together(client: TestClient) -> None:
    assert refused(client, prompt="x", max_tokens=0) == (
        "max_tokens",
        "`max_tokens` is 0; without `echo` and `prompt_logprobs` it must be greater than or equal to 1, or -1.",
    )
    assert refused(client, prompt="x", max_tokens=-2)[0] == "max_tokens"
    choice = post(client, prompt="x", max_tokens=0, prompt_logprobs=1)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")
    assert refused(client, prompt="x", logprobs=21, echo=True)[0] == "logprobs"
    assert refused(client, prompt="x", prompt_logprobs=0, stream=True)[0] == "prompt_logprobs"


def test_too_many_are_refused_by_the_name_that_was_sent(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_serve.prepare.MAX_PROMPT_LOGPROBS", 10)
    for name, fields in (("logprobs", {"logprobs": 5, "echo": True}), ("prompt_logprobs", {"prompt_logprobs": 5})):
        param, message = refused(client, prompt=PROMPT, max_tokens=1, **fields)
        assert param == name
        assert message.startswith(f"`{name}` is 5, which makes ")


def test_add_special_tokens_may_be_sent(client: TestClient) -> None:
    """The tokenizers of Phi-3 put none before a text; tests/text/test_tokenizer.py has one that does."""
    for value in (True, False):
        post(client, prompt="x", max_tokens=1, add_special_tokens=value)
        post(client, "/v1/chat/completions", messages=QUESTION, max_tokens=1, add_special_tokens=value)
