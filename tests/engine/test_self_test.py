"""The test of a loaded model before it gets requests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.self_test import self_test
from phi3_serve.errors import CheckpointError

SIZES = EngineSizes(num_blocks=8, token_budget=16, max_rows=2)


@pytest.fixture
def loaded(checkpoint: Path) -> Any:
    return load("mine", str(checkpoint), None, device="cpu", dtype="float32")


@pytest.fixture(params=["sound", "too large"])
def engine(request: pytest.FixtureRequest, loaded: Any) -> Iterator[Engine]:
    if request.param == "too large":  # each is a number, their products are none
        loaded.model.lm_head.weight = torch.nn.Parameter(loaded.model.lm_head.weight * 3e38)
    engine = Engine(loaded, sizes=SIZES)
    yield engine
    engine.close()


@pytest.mark.parametrize("engine", ["sound"], indirect=True)
def test_a_sound_model_passes(engine: Engine, loaded: Any) -> None:
    self_test("mine", loaded, engine)
    assert engine.load.num_running == 0


@pytest.mark.parametrize("engine", ["too large"], indirect=True)
def test_scores_that_are_no_numbers_are_refused(engine: Engine, loaded: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        self_test("mine", loaded, engine)
    assert caught.value.message == (
        "mine: the self-test gave nan or inf scores; the weights are damaged, or too large for their dtype"
    )
