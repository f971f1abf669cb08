"""What the tests share: checkpoints that they make themselves, a replica without Ray, an HTTP client over it."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from phi3_serve.api.app import create_app
from phi3_serve.config import AppConfig
from phi3_serve.launch.proxy import free_port
from phi3_serve.serving.replica import Replica
from tests.random_checkpoint import Shape, make
from tests.support import LocalBackend, local_replica


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
    replica._engine.close()


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
def oracle(checkpoint: Path) -> Any:
    """The text-generation pipeline of transformers, which KAITO's server was, over the same weights."""
    from transformers import AutoTokenizer, Phi3ForCausalLM, pipeline

    model = Phi3ForCausalLM.from_pretrained(checkpoint, dtype="float32")
    return pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint))
