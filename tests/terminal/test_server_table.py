"""``phi3-serve ps`` on a running server."""

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.cli import app
from phi3_serve.client import Client
from phi3_serve.config.app import AppConfig
from phi3_serve.core.variant_state import VariantState
from phi3_serve.launch.proxy import free_port
from phi3_serve.serving.replica import Replica
from tests.support import ENDLESS, LocalBackend, engine_of

LONG_NAME = "organisation/a-model-with-a-long-name-that-no-column-cuts"


@pytest.fixture(scope="module")
def url(replica: Replica, serve_app: Callable[[FastAPI], str]) -> str:
    backend = LocalBackend(replica)
    backend.state_of = {
        "tested": VariantState("ready", num_replicas=1, engine=engine_of(replica).info),
        "in-fp8": VariantState("ready", num_replicas=1, engine=replace(engine_of(replica).info, quantization="fp8")),
        LONG_NAME: VariantState("loading", "loading weights: 40 %", 5),
        "asleep": VariantState("scaled_to_zero", "No replica runs; a request starts one.", 5),
    }
    models = [{"name": name, "source": "/x", "device": "cpu"} for name in (LONG_NAME, "tested", "in-fp8", "asleep")]
    auth = {"keys": [{"name": "k", "hash": hash_of("secret"), "scopes": ["generate"]}]}
    return serve_app(create_app(backend, AppConfig.model_validate({"models": models, "auth": auth})))


def ps(url: str, *more: str) -> subprocess.CompletedProcess[str]:
    done = CliRunner().invoke(app, ["ps", "--url", url, *more])
    return subprocess.CompletedProcess(more, done.exit_code, done.stdout, done.stderr)


def test_states_memory_and_devices_are_shown(url: str, replica: Replica) -> None:
    """The default model is not ready, so /ready answers 503; the key may not see metrics."""
    done = ps(url, "--api-key", "secret")
    assert (done.returncode, done.stderr) == (0, "")
    heading, tested, in_fp8, loading, asleep, *details = done.stdout.splitlines()
    assert heading.split() == ["Model", "State", "Requests", "Memory", "Weights", "Stored", "as", "Cache", "Device"]
    assert tested.startswith("tested ")
    assert tested.split()[1:3] == ["ready", "?"]
    assert engine_of(replica).info.device in tested
    assert tested.count("float32") == 2  # the weights in memory, and the cache
    assert "safetensors: " in tested
    assert in_fp8.startswith("in-fp8 ")
    assert " fp8, activations too " in in_fp8
    assert loading.split() == [LONG_NAME, "loading", "?"]
    assert asleep.split() == ["asleep", "scaled", "to", "zero", "?"]
    assert details == [f"{LONG_NAME}: loading weights: 40 %", "asleep: No replica runs; a request starts one."]


@pytest.fixture
def running_request(server_url: str) -> Iterator[None]:
    """One that runs until the end of the test."""
    kwargs = {"do_sample": False, "max_new_tokens": 1900, **ENDLESS}
    events = Client(server_url).stream("/chat", {"prompt": "Hi", "stream": True, "generate_kwargs": kwargs})
    next(events)
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            next(events)
        events.close()  # type: ignore[attr-defined]

    reader = threading.Thread(target=read)
    reader.start()
    yield
    is_over.set()
    reader.join()


def test_requests_are_counted(server_url: str, replica: Replica, backend: LocalBackend, running_request: None) -> None:
    document: dict[str, Any] = json.loads(ps(server_url, "--json").stdout)
    assert document["url"] == server_url
    (row,) = document["models"]
    assert (row["name"], row["state"], row["requests"]) == ("tested", "ready", 1)


def test_a_server_that_is_not_there() -> None:
    done = ps(f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (3, "")
    assert "cannot be reached" in done.stderr
