"""What the terminal of `phi3-serve up` shows of a server that becomes ready, here one without Ray."""

import io
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from rich.console import Console

from phi3_serve.api.app import create_app
from phi3_serve.api.keys import hash_of
from phi3_serve.config.app import AppConfig
from phi3_serve.core.variant_state import VariantState
from phi3_serve.launch import server_notice
from phi3_serve.launch.server_notice import ServerNotice
from phi3_serve.serving.replica import Replica
from tests.support import LocalBackend

LOADING = VariantState("loading", "first: loading weights: 40 %", 10)
FAILED = VariantState("failed", "/x: file is missing. Tried once; the next try is in 5 s.", 5)
READY = VariantState("ready", num_replicas=1)


@pytest.fixture
def backend(replica: Replica) -> LocalBackend:
    backend = LocalBackend(replica)
    backend.state_of = {"first": LOADING, "second": VariantState("scaled_to_zero", "It sleeps.", 5)}
    return backend


@pytest.fixture
def url(backend: LocalBackend, serve_app: Callable[[FastAPI], str]) -> str:
    models = [{"name": name, "source": "/x", "device": "cpu"} for name in ("first", "second")]
    return serve_app(create_app(backend, AppConfig.model_validate({"models": models})))


@pytest.fixture
def shown(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Gives what was printed since the last call."""
    monkeypatch.setattr(server_notice, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(server_notice, "CALM_POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(server_notice, "PROGRESS_INTERVAL_S", 1.2)
    output, is_over, seen = io.StringIO(), threading.Event(), 0
    notice = threading.Thread(target=ServerNotice(url, Console(file=output), {"first"}).run, args=(is_over,))
    notice.start()

    def new() -> str:
        nonlocal seen
        end = time.monotonic() + 0.5
        while time.monotonic() < end and len(output.getvalue()) == seen:
            time.sleep(0.01)
        time.sleep(0.1)  # more lines may follow the first one
        text = output.getvalue()[seen:]
        seen += len(text)
        return text

    yield new
    is_over.set()
    notice.join(10)
    assert not notice.is_alive()


def test_each_model_has_its_line_once(url: str, backend: LocalBackend, shown: Callable[[], str]) -> None:
    assert shown() == "first: loading weights: 40 %\n"
    assert shown() == ""
    time.sleep(0.3)
    assert shown() == "first: loading weights: 40 %\n"  # not at every reading
    backend.state_of = {"first": FAILED, "second": VariantState("loading", "Its replica is starting.", 5)}
    lines = shown().splitlines()
    assert lines == [
        f"Model first cannot be loaded: {FAILED.detail} The other models do not wait for it.",
        "second: Its replica is starting.",
    ]
    backend.state_of = {"first": FAILED, "second": READY}
    assert shown() == "Model second is ready.\n"
    backend.state_of = {"first": READY, "second": READY}
    first, ready, page, terminal, api, curl = shown().splitlines()
    assert first == "Model first is ready."
    assert ready == "Ready. Ctrl-C stops the server."
    assert page.split() == ["Page", f"{url}/ui"]
    assert terminal.split() == ["Terminal", "phi3-serve", "chat", "--url", url]
    assert api.split() == ["API", f"{url}/chat,", f"{url}/v1", "(parameters:", f"{url}/docs)"]
    assert curl.startswith(f"  curl {url}/chat ")
    backend.state_of = {"first": READY, "second": FAILED}
    assert shown() == f"Model second cannot be loaded: {FAILED.detail} The other models do not wait for it.\n"


def test_a_model_that_starts_at_once_and_cannot_run_here_has_a_line(
    backend: LocalBackend, shown: Callable[[], str]
) -> None:
    assert shown()
    unplaceable = VariantState("unplaceable", "A replica needs 1 GPU on one node, and no node of the cluster has that.")
    backend.state_of = {"first": unplaceable, "second": unplaceable}
    assert shown() == f"Model first cannot run here: {unplaceable.detail} The other models do not wait for it.\n"
    assert shown() == ""
    backend.state_of = {"first": READY, "second": unplaceable}
    assert shown().startswith("Model first is ready.\nReady.")


def test_a_server_with_api_keys_says_where_the_key_goes(
    backend: LocalBackend, serve_app: Callable[[FastAPI], str]
) -> None:
    backend.state_of = {"first": READY}
    models = [{"name": "first", "source": "/x", "device": "cpu"}]
    config = AppConfig.model_validate({"models": models, "auth": {"key_hashes": [hash_of("k")]}})
    url, output, is_over = serve_app(create_app(backend, config)), io.StringIO(), threading.Event()
    notice = threading.Thread(target=ServerNotice(url, Console(file=output), {"first"}).run, args=(is_over,))
    notice.start()
    end = time.monotonic() + 20
    while "curl" not in output.getvalue() and time.monotonic() < end:
        time.sleep(0.02)
    is_over.set()
    notice.join(20)
    lines = output.getvalue().splitlines()
    assert f"  Terminal  PHI3_SERVE_API_KEY=KEY phi3-serve chat --url {url}" in lines
    assert lines[-1].startswith(f"  curl {url}/chat -H 'Authorization: Bearer KEY' -H ")
