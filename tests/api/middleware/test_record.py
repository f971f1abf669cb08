"""The line of a request in the log, from real requests to a real model."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.config.app import AppConfig
from phi3_serve.observability.request_log import RequestLog, request_log
from tests.support import LocalBackend

SECRET = "The secret is 4711."
CHAT = "/v1/chat/completions"
Lines = Callable[[], list[dict[str, Any]]]


def chat(**more: Any) -> dict[str, Any]:
    return {
        "model": "tested",
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 6,
        "temperature": 0,
        **more,
    }


@pytest.fixture
def log(tmp_path: Path) -> RequestLog:
    log = request_log("auto", tmp_path / "requests.log")
    assert log is not None
    return log


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    def read() -> list[dict[str, Any]]:
        text = (tmp_path / "requests.log").read_text()
        assert "4711" not in text  # neither the prompt nor an answer that repeats it
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture
def client(backend: LocalBackend, config: AppConfig, log: RequestLog) -> TestClient:
    return TestClient(create_app(backend, config, sinks=[log]))


def test_a_request_has_one_line(client: TestClient, lines: Lines) -> None:
    answer = client.post(CHAT, json=chat(), headers={"x-request-id": "mine-1"})
    (line,) = lines()
    usage = answer.json()["usage"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert line["finish_reasons"] == [answer.json()["choices"][0]["finish_reason"]]
    known = {"request_id": "mine-1", "source": "http", "method": "POST", "path": CHAT, "status": 200, "model": "tested"}
    assert known.items() <= line.items()
    assert line["stream"] is False
    assert 0 < line["queue_s"] + line["prompt_s"] + line["answer_s"] <= line["seconds"] < 60
    assert "first_token_s" not in line
    assert line["time"].endswith("+00:00")


def test_a_stream_has_the_time_to_its_first_token(client: TestClient, lines: Lines) -> None:
    with client.stream("POST", CHAT, json=chat(stream=True)) as answer:
        assert list(answer.iter_lines())[-1] or True
    (line,) = lines()
    assert line["stream"] is True
    assert 0 < line["first_token_s"] <= line["seconds"]


def test_several_answers_are_added_up(client: TestClient, lines: Lines) -> None:
    answer = client.post(CHAT, json=chat(n=3, temperature=1, seed=1))
    (line,) = lines()
    assert line["num_generations"] == len(line["finish_reasons"]) == 3
    assert line["completion_tokens"] == answer.json()["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"messages": "no list"}, 400, None),
        (chat(model="nobody"), 404, None),
        (chat(stop_token_ids=[99_999]), 400, "InvalidRequest"),
    ],
)
def test_a_refused_request_has_a_line(
    client: TestClient, lines: Lines, body: dict[str, Any], status: int, error: str | None
) -> None:
    client.post(CHAT, json=body)
    (line,) = lines()
    assert (line["status"], line.get("error")) == (status, error)


def test_the_name_of_the_key_is_logged_and_the_key_is_not(
    backend: LocalBackend, config: AppConfig, log: RequestLog, lines: Lines, tmp_path: Path
) -> None:
    keys = {"keys": [{"name": "alice", "hash": hash_of("sesame")}]}
    config = AppConfig.model_validate({**config.model_dump(), "auth": keys})
    client = TestClient(create_app(backend, config, sinks=[log]))
    assert client.post(CHAT, json=chat()).status_code == 401
    assert client.post(CHAT, json=chat(), headers={"Authorization": "Bearer sesame"}).status_code == 200
    refused, answered = lines()
    assert (refused["status"], answered["api_key"]) == (401, "alice")
    assert "api_key" not in refused
    assert "sesame" not in (tmp_path / "requests.log").read_text()


def test_what_a_client_sends_breaks_no_line(client: TestClient, lines: Lines) -> None:
    client.post("/a%0A%1b[31mb/chat", json={"prompt": "a"})
    (line,) = lines()
    assert line["path"] == "/a\n\x1b[31mb/chat"


def test_a_log_that_cannot_be_written_costs_no_answer(backend: LocalBackend, config: AppConfig) -> None:
    def full(record: object) -> None:
        raise OSError(28, "No space left on device")

    client = TestClient(create_app(backend, config, sinks=[full]))
    assert client.post(CHAT, json=chat()).status_code == 200


def on_terminal(how: Any, monkeypatch: pytest.MonkeyPatch, backend: LocalBackend, config: AppConfig) -> str:
    """What stands on a terminal after a request."""
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        log = request_log(how, None)
        assert log is not None
        client = TestClient(create_app(backend, config, sinks=[log]))
        client.post(CHAT, json=chat(), headers={"x-request-id": "mine-2"})
        shown = os.read(master, 4096).decode()
    os.close(master)
    return shown


def test_a_terminal_gets_words(monkeypatch: pytest.MonkeyPatch, backend: LocalBackend, config: AppConfig) -> None:
    shown = on_terminal("auto", monkeypatch, backend, config)
    assert f"  200  POST  {CHAT}  " in shown
    assert " + 6 tokens  length  mine-2\r\n" in shown
    assert on_terminal("json", monkeypatch, backend, config).startswith('{"time":')


def test_off_is_off() -> None:
    assert request_log("off", None) is None
