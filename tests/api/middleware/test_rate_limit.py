"""Scopes, limits and usage of API keys, over a real engine."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import ApiKeys, hash_of
from phi3_serve.config.api_keys import AuthConfig
from phi3_serve.config.app import AppConfig
from tests.support import ENDLESS, LocalBackend

FREE = {"name": "free", "hash": hash_of("free")}
SLOW = {"name": "slow", "hash": hash_of("slow"), "max_parallel_requests": 1}
POOR = {"name": "poor", "hash": hash_of("poor"), "tokens_per_minute": 60}
PROMETHEUS = {"name": "prometheus", "hash": hash_of("prometheus"), "scopes": ["metrics"]}
ASKER = {"name": "asker", "hash": hash_of("asker"), "scopes": ["generate"]}
MESSAGES: Any = [{"role": "user", "content": "hi"}]
FEW = {"model": "tested", "messages": MESSAGES, "max_tokens": 3, "generate_kwargs": ENDLESS}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys() -> ApiKeys:
    return ApiKeys(AuthConfig.model_validate({"keys": [FREE, SLOW, POOR, PROMETHEUS, ASKER]}))


@pytest.fixture
def client(backend: LocalBackend, config: AppConfig, keys: ApiKeys) -> Iterator[TestClient]:
    with TestClient(create_app(backend, config, keys=keys)) as client:
        yield client


def figures_of(client: TestClient) -> dict[str, float]:
    text = client.get("/metrics", headers={**bearer("prometheus"), "Accept": "text/plain"}).text
    return {k: float(v) for k, v in re.findall(r"^phi3_serve_(api_key_\w+_total\{.*?\}) (\S+)$", text, re.MULTILINE)}


def test_a_key_does_what_its_scopes_say(client: TestClient) -> None:
    assert client.get("/metrics", headers=bearer("prometheus")).status_code == 200
    assert client.get("/v1/models", headers=bearer("prometheus")).status_code == 200
    assert client.get("/metrics", headers=bearer("asker")).status_code == 403
    assert client.post("/v1/chat/completions", json=FEW, headers=bearer("asker")).status_code == 200
    for path in ("/chat", "/tested/chat", "/v1/chat/completions", "/v1/completions", "/v1/nothing"):
        refused = client.post(path, json=FEW, headers=bearer("prometheus"))
        assert refused.status_code == 403
        assert "prometheus lacks the scope `generate`" in refused.text
    assert refused.json()["error"]["code"] == "missing_scope"


def test_requests_at_once_are_limited(backend: LocalBackend, config: AppConfig, keys: ApiKeys, serve_app: Any) -> None:
    url = serve_app(create_app(backend, config, keys=keys))
    sdk = OpenAI(base_url=f"{url}/v1", api_key="slow", max_retries=0)
    endless: Any = {
        "model": "tested",
        "messages": MESSAGES,
        "max_tokens": 1500,
        "extra_body": {"generate_kwargs": ENDLESS},
    }
    stream = sdk.chat.completions.create(stream=True, **endless)
    next(iter(stream))
    with pytest.raises(openai.RateLimitError) as refused:
        sdk.chat.completions.create(**{**endless, "max_tokens": 1})
    answer = refused.value.response
    assert refused.value.code == "rate_limit_exceeded"
    assert "slow has 1 requests running already; its max_parallel_requests is 1" in refused.value.message
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["x-ratelimit-limit-requests"] == "1"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert sdk.with_options(api_key="free").chat.completions.create(**{**endless, "max_tokens": 1}).choices
    stream.close()  # the next request finds the place free, after the retries of the SDK
    assert sdk.with_options(max_retries=5).chat.completions.create(**{**endless, "max_tokens": 1}).choices


def test_tokens_a_minute_are_limited(client: TestClient) -> None:
    used = 0
    for _ in range(60):
        answer = client.post("/v1/chat/completions", json=FEW, headers=bearer("poor"))
        if answer.status_code != 200:
            break
        used += answer.json()["usage"]["total_tokens"]
        assert answer.headers["x-ratelimit-limit-tokens"] == "60"
        remaining = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert max(0, 59 - used) <= remaining <= 60  # refilled by one token a second
        assert "x-ratelimit-limit-requests" not in answer.headers
    assert answer.status_code == 429
    assert used >= 60
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert "poor has used its tokens; its tokens_per_minute is 60" in answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= used - 60 + 2
    assert re.fullmatch(r"\d+\.\d{3}s", answer.headers["x-ratelimit-reset-tokens"])
    by_kaito = client.post("/chat", json={"prompt": "hi"}, headers=bearer("poor"))
    assert (by_kaito.status_code, "tokens_per_minute" in by_kaito.json()["detail"]) == (429, True)
    assert client.post("/v1/chat/completions", json=FEW, headers=bearer("free")).status_code == 200
    assert client.get("/v1/models", headers=bearer("poor")).status_code == 200


def test_each_answer_of_a_call_is_paid(client: TestClient) -> None:
    usage = client.post("/v1/chat/completions", json={**FEW, "n": 4}, headers=bearer("poor")).json()["usage"]
    remaining = int(client.post("/v1/nothing", headers=bearer("poor")).headers["x-ratelimit-remaining-tokens"])
    assert usage["completion_tokens"] == 12
    assert remaining <= 60 - usage["total_tokens"] + 2


def test_a_request_that_fails_costs_nothing(client: TestClient) -> None:
    wrong = {**FEW, "generate_kwargs": {"eos_token_id": 10**6}}
    answer = client.post("/v1/chat/completions", json=wrong, headers=bearer("poor"))
    assert (answer.status_code, answer.headers["x-ratelimit-remaining-tokens"]) == (400, "60")


def test_an_abandoned_stream_costs_what_was_sent(
    backend: LocalBackend, config: AppConfig, keys: ApiKeys, serve_app: Any
) -> None:
    url = serve_app(create_app(backend, config, keys=keys))
    prompt = "a" * 400
    body = {"prompt": prompt, "stream": True, "generate_kwargs": {"max_new_tokens": 1500, **ENDLESS}}
    with httpx2.stream("POST", f"{url}/chat", json=body, headers=bearer("poor")) as answer:
        next(answer.iter_lines())
    for _ in range(50):
        time.sleep(0.1)  # until the server has noticed
        nothing = httpx2.post(f"{url}/nothing", headers=bearer("poor"))
        if nothing.status_code == 429:
            break
    assert nothing.status_code == 429, nothing.headers


def test_usage_is_counted_by_key_and_model(client: TestClient) -> None:
    usage = client.post("/v1/chat/completions", json=FEW, headers=bearer("free")).json()["usage"]
    for _ in range(60):
        if client.post("/v1/chat/completions", json=FEW, headers=bearer("poor")).status_code == 429:
            break
    figures = figures_of(client)
    free = '{api_key="free",model_name="tested"}'
    assert figures[f"api_key_requests_total{free}"] == 1
    assert figures[f"api_key_prompt_tokens_total{free}"] == usage["prompt_tokens"]
    assert figures[f"api_key_generation_tokens_total{free}"] == usage["completion_tokens"]
    assert figures['api_key_refusals_total{api_key="poor"}'] == 1


def test_keys_are_replaced_while_the_server_runs(client: TestClient, keys: ApiKeys) -> None:
    while client.post("/v1/chat/completions", json=FEW, headers=bearer("poor")).status_code == 200:
        pass
    rotated = {**FREE, "hash": hash_of("rotated")}
    keys.replace(AuthConfig.model_validate({"keys": [rotated, {**POOR, "scopes": ["generate"]}, PROMETHEUS]}))
    assert client.get("/v1/models", headers=bearer("free")).status_code == 401
    assert client.get("/v1/models", headers=bearer("rotated")).status_code == 200
    assert client.get("/metrics", headers=bearer("poor")).status_code == 403
    assert client.post("/v1/chat/completions", json=FEW, headers=bearer("poor")).status_code == 429  # still used up
    keys.replace(AuthConfig())
    assert client.post("/v1/chat/completions", json=FEW).status_code == 200


def test_a_limit_holds_for_requests_that_come_together(
    backend: LocalBackend, config: AppConfig, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, most, lock, generate = 0, 0, threading.Lock(), backend.generate

    async def counted(request: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            await asyncio.sleep(0.01)
            async for event in generate(request):
                yield event
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(backend, "generate", counted)
    with TestClient(create_app(backend, config, keys=keys)) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, "/v1/chat/completions", json=FEW, headers=bearer("slow")) for _ in range(24)]
        statuses = [one.result().status_code for one in asked]
    assert most == 1
    assert set(statuses) == {200, 429}


@pytest.mark.parametrize(
    ("auth", "text"),
    [
        ({"keys": [{"name": "a b", "hash": "0" * 64}]}, "name must be letters, digits"),
        ({"keys": [{"name": "a", "hash": "0"}]}, "hash must be 64 hexadecimal digits"),
        ({"keys": [FREE, {**FREE, "name": "other"}]}, "two API keys have the hash"),
        ({"keys": [FREE, {**SLOW, "name": "free"}]}, "two API keys have the name `free`"),
        ({"keys": [FREE], "key_hashes": [FREE["hash"]]}, "two API keys have the hash"),
        ({"keys": [{**FREE, "scopes": ["metrix"]}]}, "Input should be 'generate' or 'metrics'"),
        ({"keys": [{**FREE, "tokens_per_minute": 0}]}, "greater than or equal to 1"),
        ({"keys": [{**FREE, "tokens_per_minut": 5}]}, "did you mean `tokens_per_minute`?"),
    ],
)
def test_a_wrong_key_is_refused_by_name(auth: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        AuthConfig.model_validate(auth)
