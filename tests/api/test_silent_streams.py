"""Streams while there is nothing to send: a model loads, a queue is long, a prompt is read. Over a real socket."""

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from openai import OpenAI

from phi3_serve.api import sse, streams
from phi3_serve.api.app import create_app
from phi3_serve.client import Client
from phi3_serve.config.app import AppConfig
from phi3_serve.errors import Overloaded
from tests.api.late import Late, until
from tests.support import ENDLESS, LocalBackend

GREEDY = {"generate_kwargs": {"do_sample": False, **ENDLESS}}  # so that every answer has text
CHAT = ("/chat", {"prompt": "a", "max_tokens": 3, "return_full_text": False, **GREEDY})
COMPLETION = ("/v1/completions", {"model": "tested", "prompt": "a", "max_tokens": 3, **GREEDY})


@pytest.fixture
def late(backend: LocalBackend) -> Late:
    return Late(backend)


@pytest.fixture
def url(late: Late, config: AppConfig, serve_app: Callable[[FastAPI], str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(streams, "STATUS_DEADLINE_S", 0.2)
    monkeypatch.setattr(streams, "KEEP_ALIVE_INTERVAL_S", 0.3)
    return serve_app(create_app(late, config))


@contextmanager
def stream(url: str, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    yield connection.getresponse()
    connection.close()


def test_the_figures_are_below_the_limits_of_proxies() -> None:
    assert streams.STATUS_DEADLINE_S == 1
    assert streams.KEEP_ALIVE_INTERVAL_S == 15


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION])
def test_a_silent_stream_begins_at_once_and_sends_empty_lines(
    late: Late, url: str, path: str, body: dict[str, Any]
) -> None:
    began = time.monotonic()
    with stream(url, path, body) as answer:
        assert answer.status == 200
        assert time.monotonic() - began < 1
        arrivals = []
        for _ in range(4):
            assert answer.readline() + answer.readline() == sse.KEEP_ALIVE
            arrivals.append(time.monotonic())
        assert all(0.2 < later - earlier < 1 for earlier, later in itertools.pairwise(arrivals)), arrivals
        late.go_on.set()
        rest = [line for line in answer.read().split(b"\n\n") if line]
    with stream(url, path, body) as answer:
        at_once = [line for line in answer.read().split(b"\n\n") if line]
    for lines in (rest, at_once):
        assert len(lines) > 2
        assert [line[:6] for line in lines] == [b"data: "] * len(lines)
        assert lines[-1] == b"data: [DONE]"


@pytest.mark.thorough
def test_clients_read_over_the_empty_lines(late: Late, url: str) -> None:
    timer = threading.Timer(1.0, late.go_on.set)
    timer.start()
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        asked: Any = {"model": "tested", "prompt": "a", "max_tokens": 3, "stream": True}
        chunks = list(sdk.completions.create(**asked, extra_body=GREEDY))
    assert chunks[-1].choices[0].finish_reason == "length"
    late.go_on.clear()
    timer = threading.Timer(1.0, late.go_on.set)
    timer.start()
    events = list(Client(url).stream("/chat", {**CHAT[1], "stream": True}))
    assert "Result" in events[-1]


def test_a_client_that_reads_each_line_as_json_reads_over_the_silence(late: Late, url: str) -> None:
    """SGLang's serving benchmark does so (python/sglang/benchmark/serving.py, release 0.5.23)."""
    timer = threading.Timer(1.0, late.go_on.set)
    timer.start()
    with stream(url, *COMPLETION) as answer:
        lines = [line.strip().removeprefix(b"data: ") for line in answer if line.strip()]
    assert lines.pop() == b"[DONE]"
    assert all(json.loads(line)["object"] == "text_completion" for line in lines)


@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION])
def test_an_error_in_the_silence_is_an_event(late: Late, url: str, path: str, body: dict[str, Any]) -> None:
    late.error = Overloaded("The request waited in the queue.", 5)
    with stream(url, path, body) as answer:
        assert answer.readline() + answer.readline() == sse.KEEP_ALIVE
        late.go_on.set()
        last = answer.read().split(b"\n\n")[-2].decode()
    assert "The request waited in the queue." in last
    assert ("event: error\n" in last) == (path == "/chat")
    with stream(url, path, body) as answer:  # now it fails at once, and has its own status
        assert (answer.status, answer.headers["Retry-After"]) == (429, "5")


@pytest.mark.parametrize("waits_s", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("path", "body"), [CHAT, COMPLETION, (COMPLETION[0], {**COMPLETION[1], "n": 3})])
def test_a_client_that_goes_away_in_the_silence_ends_the_work(
    late: Late, url: str, path: str, body: dict[str, Any], waits_s: float
) -> None:
    """Before the headers, after them, and with several requests in one stream."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
    until(lambda: late.num_inside == body.get("n", 1))
    time.sleep(waits_s)
    connection.close()
    until(lambda: late.num_inside == 0, 1)
