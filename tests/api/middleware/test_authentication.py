"""Keys, ids, headers: what a request passes before a route sees it."""

import asyncio
import logging
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from fastapi.routing import iter_route_contexts
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient
from typer.testing import CliRunner

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.api.middleware.headers import RAY_HEADERS, clean_id
from phi3_serve.cli import app as cli
from phi3_serve.client import Client, Refused
from phi3_serve.config.api_keys import ApiKeyConfig, AuthConfig
from phi3_serve.config.app import AppConfig
from tests.support import LocalBackend

KEYS = ("first-key", "second-key-ü")
QUESTION = {"messages": [{"role": "user", "content": "hi"}], "generate_kwargs": {"max_new_tokens": 2}}


def with_args(config: AppConfig, **args: Any) -> AppConfig:
    return AppConfig.model_validate({**config.model_dump(), **args})


@pytest.fixture
def guarded(backend: LocalBackend, config: AppConfig) -> Iterator[TestClient]:
    auth = {"key_hashes": [hash_of(key) for key in KEYS]}
    with TestClient(create_app(backend, with_args(config, auth=auth))) as client:
        yield client


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_opens(guarded: TestClient, key: str, scheme: str) -> None:
    headers = {b"Authorization": f"{scheme} {key}".encode()}
    assert guarded.post("/chat", json=QUESTION, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic first-key", "first-key"]
)
def test_no_other_does(guarded: TestClient, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    refused = guarded.post("/chat", json=QUESTION, headers=headers)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "API key" in refused.json()["detail"]
    by_openai = guarded.post("/v1/chat/completions", json={"model": "tested", **QUESTION}, headers=headers)
    assert by_openai.status_code == 401
    assert by_openai.json()["error"]["code"] == "invalid_api_key"


def test_every_route_but_the_greeting_health_readiness_and_the_page_asks(guarded: TestClient) -> None:
    app: Any = guarded.app
    paths = {route.path for route in iter_route_contexts(app.routes)}
    assert {"/", "/chat", "/{model:path}/chat", "/v1/models", "/metrics", "/docs", "/openapi.json"} < paths
    opened = {path for path in paths if guarded.get(re.sub("{.*?}", "m", path or "")).status_code != 401}
    assert opened == {"/", "/health", "/ready", "/ui", "/ui/{version}/{path:path}"}
    assert guarded.get("/nothing/here").status_code == 401


def test_a_route_prefix_changes_nothing(backend: LocalBackend, config: AppConfig) -> None:
    auth = {"key_hashes": [hash_of("k")]}
    with TestClient(create_app(backend, with_args(config, auth=auth)), root_path="/phi3") as client:
        assert client.get("/phi3/health").status_code == 200
        assert client.get("/phi3/metrics").json()["detail"]
        assert client.get("/phi3/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert client.get("/phi3/v1/nothing", headers={"Authorization": "Bearer k"}).json()["error"]


def test_a_hash_that_is_none_is_refused_by_name(config: AppConfig) -> None:
    with pytest.raises(ValueError, match=r"key_hashes\[0\] must be 64 hexadecimal digits"):
        with_args(config, auth={"key_hashes": ["first-key"]})


def test_the_command_makes_a_key_and_its_hash() -> None:
    lines = CliRunner().invoke(cli, ["key"]).output.split()
    made = next(line for line in lines if len(line) == 43)
    assert f"[{hash_of(made)}]" in lines


def test_the_command_makes_a_key_with_a_name() -> None:
    output = CliRunner().invoke(cli, ["key", "--name", "alice"]).output
    made = next(line for line in output.split() if len(line) == 43)
    lines = yaml.safe_load(output[output.index("    auth:") :])
    assert AuthConfig.model_validate(lines["auth"]).keys == (ApiKeyConfig(name="alice", hash=hash_of(made)),)


def test_the_command_makes_no_key_with_a_name_that_the_config_refuses() -> None:
    result = CliRunner().invoke(cli, ["key", "--name", "alice smith"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "name must be letters, digits" in result.stderr


@pytest.mark.parametrize("key", ["k", "clé", "ключ"])
def test_our_client_sends_its_key(key: str, backend: LocalBackend, config: AppConfig, serve_app: Any) -> None:
    url = serve_app(create_app(backend, with_args(config, auth={"key_hashes": [hash_of(key)]})))
    assert Client(url, key).get("/v1/models")["data"][0]["id"] == "tested"
    with pytest.raises(Refused, match="API key"):
        Client(url).get("/v1/models")


def test_an_id_comes_back_cleaned(client: TestClient) -> None:
    assert client.get("/", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    sent = b"\x1b[31m" + b"a" * 10_000 + b"\x1b[0m"
    assert client.get("/", headers={b"x-request-id": sent}).headers["x-request-id"] == "31m" + "a" * 125
    first, second = (client.get("/").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert clean_id("\n\r ") != ""


def test_ray_names_the_answers_itself(backend: LocalBackend, config: AppConfig) -> None:
    with TestClient(create_app(backend, config, behind_ray=True)) as client:
        assert "x-request-id" not in client.get("/").headers


def test_rays_headers_are_not_seen(backend: LocalBackend, config: AppConfig) -> None:
    seen: list[str] = []

    async def show(request: Request) -> Response:
        seen.extend(request.headers)
        return Response()

    app = create_app(backend, config)
    app.add_route("/seen", show)
    with TestClient(app) as client:
        sent = {name.decode().title(): "-1" for name in RAY_HEADERS}
        assert client.get("/seen", headers={**sent, "X-Other": "1"}).status_code == 200
    assert "x-other" in seen
    assert not {name.decode() for name in RAY_HEADERS} & set(seen)


@pytest.mark.parametrize("packing", ["gzip", "br", "deflate, gzip", "x" * 300])
def test_a_packed_body_is_refused(client: TestClient, packing: str) -> None:
    for path in ("/chat", "/v1/chat/completions"):
        refused = client.post(path, content=b"\x1f\x8b", headers={"Content-Encoding": packing})
        assert refused.status_code == 415
        assert "Content-Encoding" in refused.text


def test_no_other_site_may_call_by_default(client: TestClient, backend: LocalBackend, config: AppConfig) -> None:
    asked = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
    assert not [name for name in client.options("/chat", headers=asked).headers if name.startswith("access-control")]
    assert "access-control-allow-origin" not in client.get("/", headers=asked).headers
    opened = with_args(config, http={"cors_origins": ["https://chat.example.org"]})
    with TestClient(create_app(backend, opened)) as friendly:
        allowed = friendly.options("/chat", headers=asked).headers["access-control-allow-origin"]
        assert allowed == "https://chat.example.org"
        shown = friendly.get("/", headers={"Origin": asked["Origin"]}).headers["access-control-expose-headers"]
        assert {"Retry-After", "x-request-id", "x-ratelimit-remaining-tokens"} <= set(shown.split(", "))
        stranger = {**asked, "Origin": "https://evil.example.org"}
        assert "access-control-allow-origin" not in friendly.options("/chat", headers=stranger).headers


def test_a_body_that_stops_coming_is_given_up(backend: LocalBackend, config: AppConfig, serve_app: Any) -> None:
    limits = {"body_timeout_s": 0.3, "max_body_bytes": 10_000}
    url = urlsplit(serve_app(create_app(backend, with_args(config, limits=limits))))
    with socket.create_connection((url.hostname or "", url.port or 0)) as connection:
        connection.sendall(
            b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        began = time.monotonic()
        answer = connection.recv(10_000)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert time.monotonic() - began < 3
    with socket.create_connection((url.hostname or "", url.port or 0)) as connection:
        head = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"1000\r\n" + b" " * 4096 + b"\r\n" + b"2000\r\n" + b" " * 8192 + b"\r\n")
        assert b" 413 " in connection.recv(10_000).split(b"\r\n")[0]


def test_prompts_are_not_logged(client: TestClient, backend: LocalBackend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("ray.serve", "phi3_serve", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    secret = "xyzzy-secret"
    bodies: list[dict[str, Any]] = [
        {"prompt": secret, "generate_kwargs": {"max_new_tokens": 2}},
        {"prompt": secret, "stream": True, "generate_kwargs": {"max_new_tokens": 2}},
        {"prompt": secret, "generate_kwargs": {"temperature": -1}},
        {"prompt": secret, "generate_kwargs": {"forced_eos_token_id": 10**6}},
        {"prompt": [secret]},
        {"prompt": secret, "model": "none"},
    ]
    for body in bodies:
        assert client.post("/chat", json=body).status_code in (200, 400, 404, 422)
    assert caplog.records is not None
    assert secret not in caplog.text


def test_a_failure_that_nobody_expected_names_the_request(config: AppConfig, caplog: pytest.LogCaptureFixture) -> None:
    class IncompleteAnswer:
        async def states(self) -> Any:
            await asyncio.sleep(0)
            raise ZeroDivisionError

    logging.getLogger("ray.serve").propagate = True
    with TestClient(create_app(IncompleteAnswer(), config), raise_server_exceptions=False) as client:  # type: ignore[arg-type]
        answer = client.get("/ready", headers={"x-request-id": "find-me"})
    assert (answer.status_code, answer.json()) == (500, {"detail": "Internal Server Error"})
    assert "GET /ready (find-me)" in caplog.text
