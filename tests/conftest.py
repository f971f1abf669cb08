"""What the tests share: checkpoints that they make themselves, a replica without Ray, an HTTP client over it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRITON_INTERPRET"] = "1"  # the kernels for a GPU run on the CPU
if num_workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))

from phi3_serve.api.app import create_app
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.config import AppConfig
from phi3_serve.core import VariantState
from phi3_serve.launch.proxy import free_port
from phi3_serve.serving.replica import Replica
from tests.random_checkpoint import Shape, make
from tests.serving import cluster
from tests.serving.cluster import Cluster, Head, SharedClusters
from tests.support import LocalBackend, engine_of, local_replica

MAX_RAY_STARTS = 9  # each takes seconds; tests share clusters


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without Ray come first. Tests that share a cluster follow one another."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> float:
    fixtures: list[str] = getattr(item, "fixturenames", [])
    if item.get_closest_marker("cluster"):
        of_server = 3.5 if item.get_closest_marker("ends_server") else 3
        return 4 if "head" in fixtures else of_server if "server" in fixtures else 2
    return 1 if item.get_closest_marker("browser") else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that has started too many clusters."""
    if len(cluster.STARTED) > MAX_RAY_STARTS:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many clusters were started."""
    if started := cluster.STARTED:
        terminalreporter.write_sep("-", f"Ray was started {len(started)} times; at most {MAX_RAY_STARTS} are allowed")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose greedy answers are long and varied."""
    directory = tmp_path_factory.mktemp("checkpoint")
    make(directory, Shape(num_layers=3), seed=7)
    return directory


@pytest.fixture(scope="session")
def replica(checkpoint: Path) -> Iterator[Replica]:
    replica = local_replica("tested", str(checkpoint))
    logger = logging.getLogger("phi3_serve")  # in Serve, a replica writes to Serve's log
    logger.handlers, logger.propagate = [], True
    yield replica
    engine_of(replica).close()


@pytest.fixture(scope="session")
def config(checkpoint: Path) -> AppConfig:
    return AppConfig.model_validate(
        {
            "models": [{"name": "tested", "source": str(checkpoint), "device": "cpu"}],
            "limits": {"max_body_bytes": 100_000},
        }
    )


@pytest.fixture(scope="session")
def backend(replica: Replica) -> LocalBackend:
    return LocalBackend(replica)


@pytest.fixture(scope="session")
def client(backend: LocalBackend, config: AppConfig) -> Iterator[TestClient]:
    with TestClient(create_app(backend, config)) as client:
        yield client


@pytest.fixture(scope="session")
def serve_app() -> Iterator[Callable[[FastAPI], str]]:
    """Put an app behind a real socket; gives its URL."""
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
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def server_url(backend: LocalBackend, config: AppConfig, serve_app: Callable[[FastAPI], str]) -> str:
    """The app of ``client`` behind a real socket."""
    return serve_app(create_app(backend, config))


@pytest.fixture(scope="session")
def make_tiny_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], FastAPI]]:
    """Makes an app that serves phi-3-tiny as the default configuration does, with batches; all apps share one replica."""
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
    shared = SharedClusters()
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def server(shared_clusters: SharedClusters, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The server of ``cluster.up``."""
    return shared_clusters.use(Cluster, lambda: cluster.up(tmp_path_factory.mktemp("up"), checkpoint))


@pytest.fixture(scope="module")
def head(shared_clusters: SharedClusters, tmp_path_factory: pytest.TempPathFactory) -> Head:
    """A Ray head without applications, on which the tests of a file deploy theirs. Faults of ``faulty`` go there too."""

    def start() -> AbstractContextManager[Head]:
        directory = tmp_path_factory.mktemp("head")
        return cluster.head(directory, FAULTS=str(directory))

    head = shared_clusters.use(Head, start)
    head.clear()
    return head
