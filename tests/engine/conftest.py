from pathlib import Path

import pytest

from phi3_serve.engine.loader import LoadedModel, load


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> LoadedModel:
    return load("tested", str(checkpoint), None, device="cpu", dtype="float32")
