"""A server with batches in a process of its own: ``python -m tests.api.batches.server PORT CHECKPOINT DIRECTORY``."""

import sys

import uvicorn

from phi3_serve.api.app import create_app
from phi3_serve.config.app import AppConfig
from tests.support import LocalBackend, local_replica


def main(port: str, checkpoint: str, directory: str) -> None:
    config = AppConfig.model_validate(
        {
            "models": [{"name": "tested", "source": checkpoint, "device": "cpu"}],
            "batches": {"directory": directory},
        }
    )
    backend = LocalBackend(local_replica("tested", checkpoint, max_waiting=64))
    uvicorn.run(create_app(backend, config), port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
