"""Our launcher starts a real HAProxy with the configuration that Ray writes, before a server that holds requests."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest
from fastapi import FastAPI
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve._private.haproxy_metrics import HAProxyMetricsCollector
from ray.serve.config import HTTPOptions
from starlette.types import Message, Receive, Scope, Send

from phi3_serve.api import headers
from phi3_serve.api.error_handlers import error_response
from phi3_serve.errors import ModelUnavailable
from phi3_serve.launch.haproxy import (
    CAPACITY_MAX_AGE_S,
    DEPLOYMENT,
    EXCESS,
    EXCESS_OF_OLD_CAPACITY,
    closed_without_routes,
    edited,
    with_capacity_rules,
)
from phi3_serve.launch.proxy import free_port
from phi3_serve.overload import STARTING_RETRY_AFTER_S, server_is_full
from tests.upgrades import BODY, post_with_upgrade

pytestmark = pytest.mark.slow

CAPACITY = 2
LAUNCHER = Path(sysconfig.get_path("scripts")) / "phi3-serve-haproxy"


def config_of_ray(directory: Path, port: int, upstream: str | None, fallback: str | None = None) -> Path:
    """The file that Ray Serve writes for one application at ``upstream``, or for none. ``fallback``: Serve's own proxy."""
    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        socket_path=str(directory / "admin.sock"),
        server_state_base=str(directory),
        server_state_file=str(directory / "server-state"),
        stats_port=free_port(),
        metrics_port=free_port(),
        metrics_socket_path=str(directory / "metrics.sock"),
        health_check_inter="5s",  # also the time in which a check must be answered
        health_check_fastinter="100ms",
        health_check_downinter="100ms",
        has_received_routes=True,
        is_head=True,
    )
    backends = {}
    if upstream is not None:
        host, _, upstream_port = upstream.partition(":")
        backends["http-phi3"] = BackendConfig(
            "http-phi3",
            "/",
            servers=[ServerConfig("ingress", host, int(upstream_port))] if upstream_port else [],
            fallback_server=None if fallback is None else ServerConfig("fallback", "127.0.0.1", int(fallback)),
            app_name="phi3",
            ingress_deployment_name="ingress",
        )
    path = directory / "haproxy.cfg"
    HAProxyApi(config, backends, str(path))._generate_config_file_internal()
    return path


class Application:
    """Holds every POST until its client disconnects or the test releases it. Answers a GET at once.

    Each answer reports the capacity. A POST to ``/stream`` gets the start of its answer before it is held.
    """

    def __init__(self, capacity: int | None) -> None:
        self.capacity = capacity
        self.num_inside = 0
        self.bodies: list[bytes] = []
        self.let_go = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only HTTP")  # uvicorn goes on without the messages of a lifespan
        told = [] if self.capacity is None else [(headers.CAPACITY.encode(), str(self.capacity).encode())]
        is_streamed = scope["path"] == "/stream"
        length = [] if is_streamed else [(b"content-length", b"2")]
        start = {"type": "http.response.start", "status": 200, "headers": [*told, *length]}
        if scope["method"] == "POST":
            self.num_inside += 1
            try:
                self.bodies.append(await body_of(receive))
                if is_streamed:
                    await send(start)
                    await send({"type": "http.response.body", "body": b"{", "more_body": True})
                if not await self._is_released(receive):
                    return
            finally:
                self.num_inside -= 1
        if not is_streamed:
            await send(start)
        await send({"type": "http.response.body", "body": b"}" if is_streamed else b"{}"})

    async def _is_released(self, receive: Receive) -> bool:
        """Wait for the release of the test, or for the end of the connection."""
        disconnected = asyncio.ensure_future(receive())
        while not self.let_go.is_set():
            if disconnected.done():
                return False
            await asyncio.sleep(0.01)
        disconnected.cancel()
        return True


async def body_of(receive: Receive) -> bytes:
    body = b""
    message: Message = {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    return body


class Proxied:
    """The application behind HAProxy, and clients that wait at it."""

    def __init__(
        self, application: Application, client: httpx2.Client, pool: ThreadPoolExecutor, process: psutil.Process
    ) -> None:
        self.application = application
        self.client = client
        self.process = process
        self._pool = pool

    @property
    def address(self) -> tuple[str, int]:
        return self.client.base_url.host, self.client.base_url.port or 80

    def waiting(self, count: int) -> list[Future[httpx2.Response]]:
        """``count`` more requests, once all are inside."""
        wanted = self.application.num_inside + count
        asked = [self._pool.submit(self.client.post, "/chat", json={}) for _ in range(count)]
        end = time.monotonic() + 60
        while self.application.num_inside < wanted:
            assert time.monotonic() < end, self.application.num_inside
            time.sleep(0.01)
        return asked


@pytest.fixture
def proxied(tmp_path: Path, serve_app: Callable[[FastAPI], str], request: pytest.FixtureRequest) -> Iterator[Proxied]:
    application = Application(getattr(request, "param", CAPACITY))
    upstream, port = serve_app(application), free_port()  # type: ignore[arg-type]  # any ASGI app
    config = config_of_ray(tmp_path, port, urlsplit(upstream).netloc)
    process = subprocess.Popen([LAUNCHER, "-db", "-f", str(config)], cwd=tmp_path)
    limits = httpx2.Limits(max_connections=None)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            until_it_listens(client)
            with ThreadPoolExecutor(200) as pool:
                yield Proxied(application, client, pool, psutil.Process(process.pid))
                application.let_go.set()
    finally:
        process.terminate()
        process.wait(10)


def until_it_listens(client: httpx2.Client) -> None:
    end = time.monotonic() + 30
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


@pytest.mark.parametrize(
    "path",
    [
        *("/chat", "/v1/chat", "/phi/chat", "/v1/completions", "/v1/chat/completions", "/v1/responses"),
        *("/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/tokenize", "/detokenize", "/apply-template"),
    ],
)
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


@pytest.mark.parametrize("path", ["/chat", "/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_a_request_without_an_ingress_is_told_to_come_back(
    path: str, tmp_path: Path, serve_app: Callable[[FastAPI], str]
) -> None:
    """As while the server answers its last requests: Serve's own proxy, which has no route, says 404."""
    proxy, port = FastAPI(openapi_url=None), free_port()
    proxy.add_api_route("/-/healthz", lambda: "success")
    without_routes = serve_app(proxy)
    config = config_of_ray(tmp_path, port, "127.0.0.1:", urlsplit(without_routes).netloc.partition(":")[2])
    process = subprocess.Popen([LAUNCHER, "-db", "-f", str(config)], cwd=tmp_path)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            until(lambda: _listens(port))
            until(lambda: client.get("/ready").status_code == 404)
            refused = client.post(path, json={}, headers={headers.REQUEST_ID: "mine"})
    finally:
        process.terminate()
        process.wait(10)
    message = "No request is taken now: the server starts or ends. Try again in a while."
    expected = error_response(path, ModelUnavailable(message, STARTING_RETRY_AFTER_S))
    assert (refused.status_code, refused.content) == (503, expected.body)
    assert refused.headers["retry-after"] == expected.headers["retry-after"]
    assert refused.headers[headers.REQUEST_ID] == "mine"


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_ray_counts_a_refusal_apart_from_the_answers_of_the_ingress(proxied: Proxied, tmp_path: Path) -> None:
    """HAProxy sends a line for each answer to the socket at which Ray's proxy actor listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "metrics.sock"))
        listener.settimeout(20)
        proxied.waiting(CAPACITY + EXCESS)
        proxied.client.get("/health")
        proxied.client.post("/chat", json={})
        seen: dict[str | None, str | None] = {}
        while "429" not in seen.values():
            parsed = HAProxyMetricsCollector.parse_line(listener.recv(8192))
            if parsed is not None:
                seen[parsed.deployment] = parsed.status_code
    assert seen == {"ingress": "200", DEPLOYMENT: "429"}


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


@pytest.mark.parametrize("path", ["/chat", "/stream"])
@pytest.mark.parametrize("is_split", [False, True])
def test_an_abandoned_request_is_cancelled(proxied: Proxied, path: str, is_split: bool) -> None:
    """OpenAI's SDK sends headers and body in separate packets."""
    body = json.dumps({"prompt": "x" * 3000}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(5):
        with socket.create_connection(proxied.address) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if is_split:
                connection.sendall(head)
                time.sleep(0.05)
                connection.sendall(body)
            else:
                connection.sendall(head + body)
            until(lambda: proxied.application.num_inside == 1)
            time.sleep(0.1)
        until(lambda: proxied.application.num_inside == 0)
    used = sum(proxied.process.cpu_times()[:2])
    time.sleep(0.5)
    assert (
        sum(proxied.process.cpu_times()[:2]) - used < 0.1
    )  # seconds; HAProxy does not wake up for the dead connection


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_that_asks_for_another_protocol_keeps_its_body(
    proxied: Proxied, protocol: str, is_chunked: bool
) -> None:
    """Java's HttpClient asks for h2c with its first request."""
    proxied.application.let_go.set()
    assert post_with_upgrade(proxied.address, protocol, is_chunked) == b"{}"
    assert proxied.application.bodies == [BODY]


def test_the_statistics_are_for_this_machine_and_the_admin_socket_for_this_user(tmp_path: Path) -> None:
    config = edited(config_of_ray(tmp_path, 80, "127.0.0.1:81").read_text())
    bound = re.findall(r"^\s+bind (\S+):\d+$", config, re.MULTILINE)
    assert bound == ["127.0.0.1"] * 3
    assert re.findall(r"stats socket \S+ mode (\d+) ", config) == ["600"]


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_ends_with_the_process_that_has_started_it(tmp_path: Path) -> None:
    port = free_port()
    command = [str(LAUNCHER), "-db", "-f", str(config_of_ray(tmp_path, port, "127.0.0.1:81"))]
    starts = f"import subprocess; print(subprocess.Popen({command}).pid, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", starts], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    haproxy = psutil.Process(int(parent.stdout.readline()))
    try:
        until(lambda: is_taken(port), 30)
        parent.kill()
        parent.communicate(timeout=10)
        until(lambda: not is_taken(port), 10)
    finally:
        with suppress(psutil.NoSuchProcess):
            haproxy.kill()


def is_taken(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_no_backend_no_proxied(tmp_path: Path) -> None:
    without_routes = config_of_ray(tmp_path, 80, None).read_text()
    assert "    bind 127.0.0.1:80\n" in without_routes
    shut = closed_without_routes(without_routes)
    assert shut == without_routes.replace("    bind 127.0.0.1:80\n", "")
    routed = config_of_ray(tmp_path, 80, "127.0.0.1:81").read_text()
    assert closed_without_routes(routed) == routed
    assert with_capacity_rules(shut) == shut
