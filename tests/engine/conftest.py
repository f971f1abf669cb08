import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from phi3_serve.engine.kernels import cpu_library as library_module
from phi3_serve.engine.kernels.cpu_library import cpu_library, levels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.observability import progress
from tests.hub import Hub, running_hub
from training.modules import load_with_modules


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test draws the same numbers in every run. ``make fuzz`` and ``make fuzz-kernels`` draw others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_with_modules(checkpoint)


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub whose repository is ``checkpoint``, with an empty cache."""
    with running_hub(checkpoint) as (handler, endpoint):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        # the library itself tries again for half a minute
        monkeypatch.setattr(
            "huggingface_hub.utils._http.time", SimpleNamespace(**{**vars(time), "sleep": lambda s: None})
        )
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
        yield handler


@pytest.fixture(params=levels())
def each_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every kernel of this test is that of one level."""
    monkeypatch.setattr(library_module, "levels", lambda: (request.param,))
    cpu_library.cache_clear()
    yield str(request.param)
    cpu_library.cache_clear()
