"""What the terminal of `phi3-serve up` shows of a server that becomes ready, here one without Ray."""

import os
import subprocess
import threading
import time
from collections.abc import Callable

import pytest
from fastapi import FastAPI

from phi3_serve.api.app import create_app
from phi3_serve.config import AppConfig
from phi3_serve.core import VariantState
from phi3_serve.launch import ready_notice
from phi3_serve.serving.replica import Replica
from tests.support import LocalBackend

LOADING = VariantState("loading", "40 %", 10)
FAILED = VariantState("failed", "/x: file is missing. Tried once; the next try is in 5 s.", 5)
READY = VariantState("ready", num_replicas=1)


@pytest.fixture
def backend(replica: Replica) -> LocalBackend:
    backend = LocalBackend(replica)
    backend.state_of = {"first": LOADING, "second": LOADING}
    return backend


def watch(url: str) -> threading.Thread:
    thread = threading.Thread(target=ready_notice.print_when_ready, args=(url, os.getpid()))
    thread.start()
    return thread


def test_the_notice_names_each_model_that_cannot_be_loaded_once(
    backend: LocalBackend,
    serve_app: Callable[[FastAPI], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready_notice, "POLL_INTERVAL_S", 0.02)
    models = [{"name": name, "source": "/x", "device": "cpu"} for name in ("first", "second")]
    url = serve_app(create_app(backend, AppConfig.model_validate({"models": models})))
    notice = watch(url)

    def shown() -> str:
        time.sleep(0.5)
        return capsys.readouterr().err

    assert "Ready" not in shown()
    backend.state_of = {"first": FAILED, "second": READY}
    assert shown() == f"\nModel first cannot be loaded: {FAILED.detail} The other models do not wait for it.\n"
    assert shown() == ""
    backend.state_of = {"first": READY, "second": LOADING}
    assert shown().startswith(f"\nReady at {url} (parameters: {url}/docs, stop with Ctrl-C). Try:\n  curl {url}/chat ")
    assert notice.is_alive()
    backend.state_of = {"first": READY, "second": FAILED}
    assert shown() == f"\nModel second cannot be loaded: {FAILED.detail} The other models do not wait for it.\n"
    notice.join(10)
    assert not notice.is_alive()


def test_the_notice_ends_with_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    ready_notice.print_when_ready("http://127.0.0.1:9", ended.pid)
    assert capsys.readouterr().err == ""
