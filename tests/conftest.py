"""What the tests share: checkpoints that they make themselves, a replica without Ray, an HTTP client over it.

Fixtures import what they need: the process that only hands out tests to workers loads this file, too.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from phi3_serve.config.app import AppConfig
    from phi3_serve.serving.replica import Replica
    from tests.serving.cluster import Cluster, Head, SharedClusters
    from tests.support import LocalBackend

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRITON_INTERPRET"] = "1"  # the kernels for a GPU run on the CPU
if num_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))

MAX_RAY_STARTS = 9  # each takes seconds; tests share clusters


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ``make test-fast`` and of CI."""
    parser.addoption("--max-cases", type=int, help="run at most so many cases of each parametrized test")
    parser.addoption("--slow-part", type=_part, help="of the slow tests, run part I of N: I/N, with I from 0 to N - 1")


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(part), int(parts)


@pytest.hookimpl(trylast=True)  # after -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests without Ray come first. Tests that share a cluster follow one another."""
    if (max_cases := config.getoption("max_cases")) is not None:
        _keep_some_cases(config, items, max_cases)
    if (slow_part := config.getoption("slow_part")) is not None:
        _keep_a_part_of_the_slow(config, items, *slow_part)
    items.sort(key=_rank)


def _keep_a_part_of_the_slow(config: pytest.Config, items: list[pytest.Item], part: int, parts: int) -> None:
    """Deselect the slow tests of other parts. In the order of their names, each belongs to the part after the last one."""
    slow = sorted((item for item in items if item.get_closest_marker("slow")), key=lambda item: item.nodeid)
    _deselect(config, items, {item for at, item in enumerate(slow) if at % parts != part})


def _keep_some_cases(config: pytest.Config, items: list[pytest.Item], max_cases: int) -> None:
    """Deselect all but ``max_cases`` cases of each test, drawn by its name: the same ones in every run."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {
        item
        for test, of_test in cases.items()
        for item in random.Random(test).sample(of_test, min(max_cases, len(of_test)))
    }
    _deselect(config, items, set(items) - kept)


def _deselect(config: pytest.Config, items: list[pytest.Item], deselected: set[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item in deselected])
    items[:] = [item for item in items if item not in deselected]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Look for no garbage while tests are imported, and never among what was imported: it stays to the end."""
    gc.disable()
    collected = yield
    import hypothesis  # noqa: F401 - its plugin imports it at the end, and then cannot find what refers to frozen objects

    gc.freeze()
    gc.enable()
    return collected


def _rank(item: pytest.Item) -> float:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    if item.get_closest_marker("cluster"):
        of_server = 3.5 if item.get_closest_marker("ends_server") else 3
        return 4 if "head" in fixtures else of_server if "server" in fixtures else 2
    return 1 if item.get_closest_marker("browser") else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that has started too many clusters."""
    if len(_started_clusters()) > MAX_RAY_STARTS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many clusters were started."""
    if started := _started_clusters():
        terminalreporter.write_sep("-", f"Ray was started {len(started)} times; at most {MAX_RAY_STARTS} are allowed")


def _started_clusters() -> list[list[str]]:
    module = sys.modules.get("tests.serving.cluster")
    return [] if module is None else module.STARTED


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose greedy answers are long and varied."""
    from tests.random_checkpoint import Shape, make

    directory = tmp_path_factory.mktemp("checkpoint")
    make(directory, Shape(num_layers=3), seed=7)
    return directory


@pytest.fixture(scope="session")
def replica(checkpoint: Path) -> Iterator[Replica]:
    from tests.support import engine_of, local_replica

    replica = local_replica("tested", str(checkpoint))
    logger = logging.getLogger("phi3_serve")  # in Serve, a replica writes to Serve's log
    logger.handlers, logger.propagate = [], True
    yield replica
    engine_of(replica).close()


@pytest.fixture(scope="session")
def config(checkpoint: Path) -> AppConfig:
    from phi3_serve.config.app import AppConfig

    return AppConfig.model_validate(
        {
            "models": [{"name": "tested", "source": str(checkpoint), "device": "cpu"}],
            "limits": {"max_body_bytes": 100_000},
        }
    )


@pytest.fixture(scope="session")
def backend(replica: Replica) -> LocalBackend:
    from tests.support import LocalBackend

    return LocalBackend(replica)


@pytest.fixture(scope="session")
def client(backend: LocalBackend, config: AppConfig) -> Iterator[TestClient]:
    from starlette.testclient import TestClient

    from phi3_serve.api.app import create_app

    with TestClient(create_app(backend, config)) as client:
        yield client


@pytest.fixture(scope="session")
def serve_app() -> Iterator[Callable[[FastAPI], str]]:
    """Put an app behind a real socket; gives its URL."""
    import uvicorn

    from phi3_serve.launch.proxy import free_port

    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def serve(app: FastAPI) -> str:
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        running.append((server, thread))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}"

    yield serve
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture(scope="session")
def server_url(backend: LocalBackend, config: AppConfig, serve_app: Callable[[FastAPI], str]) -> str:
    """The app of ``client`` behind a real socket."""
    from phi3_serve.api.app import create_app

    return serve_app(create_app(backend, config))


@pytest.fixture(scope="session")
def make_tiny_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], FastAPI]]:
    """Makes an app that serves phi-3-tiny as the default configuration does, with batches; all apps share one replica."""
    from phi3_serve.api.app import create_app
    from phi3_serve.catalogue import EMBEDDED_TINY
    from phi3_serve.config.app import AppConfig
    from phi3_serve.core.variant_state import VariantState
    from tests.support import LocalBackend, engine_of, local_replica

    replica = local_replica("phi-3-tiny", str(EMBEDDED_TINY), dtype="auto", max_waiting=64)
    backend = LocalBackend(replica)
    backend.state_of = {"phi-3-tiny": VariantState("ready")}
    batches = {"directory": str(tmp_path_factory.mktemp("batches"))}
    config = AppConfig.model_validate({"models": [{"name": "phi-3-tiny"}], "batches": batches})
    yield lambda: create_app(backend, config)
    engine_of(replica).close()


@pytest.fixture(scope="session")
def oracle(checkpoint: Path) -> Any:
    """The text-generation pipeline of transformers, which KAITO's server was, over the same weights."""
    from transformers import AutoTokenizer, Phi3ForCausalLM, pipeline

    model = Phi3ForCausalLM.from_pretrained(checkpoint, dtype="float32")
    return pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint))


@pytest.fixture(scope="session")
def shared_clusters() -> Iterator[SharedClusters]:
    from tests.serving.cluster import SharedClusters

    shared = SharedClusters()
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def server(shared_clusters: SharedClusters, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The server of ``cluster.up``."""
    from tests.serving import cluster
    from tests.serving.cluster import Cluster

    return shared_clusters.use(Cluster, lambda: cluster.up(tmp_path_factory.mktemp("up"), checkpoint))


@pytest.fixture(scope="module")
def head(shared_clusters: SharedClusters, tmp_path_factory: pytest.TempPathFactory) -> Head:
    """A Ray head without applications, on which the tests of a file deploy theirs. Faults of ``faulty`` go there too."""
    from tests.serving import cluster
    from tests.serving.cluster import Head

    def start() -> AbstractContextManager[Head]:
        directory = tmp_path_factory.mktemp("head")
        return cluster.head(directory, FAULTS=str(directory))

    head = shared_clusters.use(Head, start)
    head.clear()
    return head
