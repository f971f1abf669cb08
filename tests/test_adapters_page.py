"""docs/adapters.md, carried out: its adapter is trained, offered and asked as a reader would, without Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI

from phi3_serve.api.app import create_app
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.config.app import AppConfig
from phi3_serve.config.user_config import LiveModelConfig
from phi3_serve.core.variant_state import VariantState
from tests.support import LocalBackend, engine_of, local_replica
from tests.test_tutorial import ROOT, blocks, check, save_files

BLOCKS = blocks((ROOT / "docs" / "adapters.md").read_text())
RUN = [block for block in BLOCKS if block.is_run and block.prints and block.note != "train"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works. The adapter is trained, which takes half a minute."""
    directory = tmp_path_factory.mktemp("adapters-page")
    (directory / "examples").symlink_to(ROOT / "examples")
    (training,) = (block for block in BLOCKS if block.note == "train")
    check(training, directory)
    return directory


@pytest.fixture(scope="module")
def url(directory: Path, serve_app: Callable[[FastAPI], str]) -> Iterator[str]:
    """The server of the page."""
    (file,) = (block for block in BLOCKS if block.file == "adapters.yaml")
    config = AppConfig.model_validate(yaml.safe_load(file.text)["applications"][0]["args"])
    (model,) = config.models
    replica = local_replica("phi-3-tiny", str(EMBEDDED_TINY))
    places = [a.model_copy(update={"source": str(directory / a.source)}) for a in model.offered_adapters]
    replica.reconfigure({"adapters": [adapter.model_dump() for adapter in places]})
    backend = LocalBackend(replica)
    backend.state_of = {"phi-3-tiny": VariantState("ready")}
    yield serve_app(create_app(backend, config))
    engine_of(replica).close()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(RUN)))
def test_a_block_prints_what_the_page_says(index: int, directory: Path, url: str) -> None:
    save_files(directory, url, BLOCKS)
    check(RUN[index], directory, url)


def test_the_other_blocks_are_valid() -> None:
    assert len(RUN) == 5
    adapters = [yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml" and not block.file]
    deployments, always = adapters
    assert LiveModelConfig.model_validate(deployments["deployments"][0]["user_config"]).adapters
    AppConfig.model_validate({"models": [{"name": "phi-3-tiny", **always}]})
