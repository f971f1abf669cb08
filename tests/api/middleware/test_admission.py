"""What is refused before it is read, and limits that change while the server runs."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.headers import CAPACITY
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.config.app import AppConfig
from phi3_serve.core.generation_request import GenerationRequest
from tests.support import ENDLESS, LocalBackend


class Narrow(LocalBackend):
    """Takes two requests, and holds them until it is told to go on."""

    def __init__(self, backend: LocalBackend) -> None:
        super().__init__(backend.replica)
        self.inside = threading.Semaphore(0)

    def capacity(self) -> int:
        return 2

    async def generate(self, request: GenerationRequest) -> Any:
        self.inside.release()
        async for event in super().generate(request):
            yield event


@pytest.mark.parametrize("path", ["/chat", "/v1/completions"])
def test_what_is_too_much_is_refused_unread_and_the_rest_answered(
    backend: LocalBackend, config: AppConfig, path: str
) -> None:
    narrow = Narrow(backend)
    body = {"model": "tested", "prompt": "a", "generate_kwargs": {"max_new_tokens": 400, **ENDLESS}}
    with TestClient(create_app(narrow, config)) as client, ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(client.post, path, json=body) for _ in range(2)]
        for _ in range(2):
            assert narrow.inside.acquire(timeout=20)
        refused = client.post(path, content=b"no JSON at all")
        seen = client.get("/ready")
        assert refused.status_code == 429
        message = "The server has 2 requests already; its capacity is 2."
        error = refused.json()
        assert (error["detail"] if path == "/chat" else error["error"]["message"]) == message
        assert refused.headers["retry-after"] == "5"
        assert refused.headers[CAPACITY] == seen.headers[CAPACITY] == "2"
        assert seen.status_code == 200
        assert [answer.result().status_code for answer in slow] == [200, 200]
        assert client.post(path, json={**body, "generate_kwargs": {"max_new_tokens": 1}}).status_code == 200


def test_limits_change_while_the_server_runs(backend: LocalBackend, config: AppConfig) -> None:
    limits = CurrentLimits(config.limits)
    with TestClient(create_app(backend, config, limits=limits)) as client:
        body = {"prompt": "a" * 2000, "generate_kwargs": {"max_length": None, "max_new_tokens": 2}}
        assert client.post("/chat", json=body).status_code == 200
        limits.current = limits.current.model_copy(update={"max_body_bytes": 1500})
        answer = client.post("/chat", json=body)
        assert (answer.status_code, answer.json()) == (413, {"detail": "The body is larger than 1,500 bytes."})
        limits.current = limits.current.model_copy(update={"request_timeout_s": 0.05})
        late = client.post("/chat", json={"prompt": "a", "generate_kwargs": {"max_new_tokens": 2000, **ENDLESS}})
        assert late.status_code == 408


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("wait=30", 30), ("respond-async, wait=7", 7), ("wait=999999", 600), ("wait=-1", 0), ("await=3", 0), ("", 0)],
)
def test_prefer_says_how_long_a_request_waits_for_its_model(
    backend: LocalBackend, config: AppConfig, header: str, seconds: float
) -> None:
    asked: list[GenerationRequest] = []

    class Listening(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            asked.append(request)
            async for event in super().generate(request):
                yield event

    with TestClient(create_app(Listening(backend.replica), config)) as client:
        headers = {"Prefer": header, "X-Session-Id": "mine"}
        body = {"model": "tested", "prompt": "a", "max_tokens": 2, "prompt_cache_key": "other"}
        assert client.post("/v1/completions", json=body, headers=headers).status_code == 200
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/chat", json={"prompt": "a", "max_tokens": 2}, headers=headers).status_code == 200
    assert [(r.options.wait_s, r.options.session) for r in asked] == [
        (seconds, "mine"),
        (0, "other"),
        (seconds, "mine"),
    ]
    assert [r.options.queue_timeout_s for r in asked] == [max(50, seconds), 50, max(50, seconds)]


@pytest.mark.parametrize(
    ("limit_s", "stream", "header", "seconds"),
    [
        (None, False, "", 50),  # proxies close a connection that is silent for 60 s
        (None, False, "wait=300", 300),
        (None, True, "", None),  # empty lines keep the connection
        (None, True, "wait=300", None),
        (20, False, "wait=300", 20),  # the operator has the last word
        (200, False, "", 200),
        (20, True, "", 20),
    ],
)
@pytest.mark.parametrize(
    "path", ["/chat", "/v1/completions", "/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses"]
)
def test_a_plain_request_waits_in_the_queue_for_less_than_the_limit_of_proxies(
    backend: LocalBackend,
    config: AppConfig,
    path: str,
    limit_s: float | None,
    stream: bool,
    header: str,
    seconds: float | None,
) -> None:
    asked: list[GenerationRequest] = []

    class Listening(LocalBackend):
        async def generate(self, request: GenerationRequest) -> Any:
            asked.append(request)
            async for event in super().generate(request):
                yield event

    limits = CurrentLimits(config.limits.model_copy(update={"queue_timeout_s": limit_s}))
    body = {"model": "tested", "max_tokens": 2, "stream": stream}
    has_messages = path.endswith(("chat/completions", "/api/chat", "/messages"))
    prompt_field = "input" if path == "/v1/responses" else "prompt"
    body |= {"messages": [{"role": "user", "content": "a"}]} if has_messages else {prompt_field: "a"}
    with TestClient(create_app(Listening(backend.replica), config, limits=limits)) as client:
        assert client.post(path, json=body, headers={"Prefer": header}).status_code == 200
    assert [r.options.queue_timeout_s for r in asked] == [seconds]
