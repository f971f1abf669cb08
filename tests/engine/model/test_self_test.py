"""The test of a loaded model before it gets requests."""

from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.self_test import self_test
from phi3_serve.errors import CheckpointError
from tests.engine.asking import Answer, request

SIZES = EngineSizes(num_blocks=8, token_budget=16, max_rows=2)


@pytest.fixture
def own(checkpoint: Path) -> Any:
    """A model that a test may change."""
    return load("mine", str(checkpoint), None, device="cpu", dtype="float32")


def test_a_sound_model_passes_and_its_cache_is_as_before(own: Any) -> None:
    engine = Engine(own, sizes=SIZES)
    before = Answer(engine, request(own, max_new_tokens=8, do_sample=False)).ids()
    self_test(engine._core.runner, 5)
    engine.blocks.check_integrity([])
    assert Answer(engine, request(own, max_new_tokens=8, do_sample=False)).ids() == before
    engine.close()


def test_scores_that_are_no_numbers_are_refused(own: Any) -> None:
    """Each weight is a number, and their products are none."""
    own.model.lm_head.weight = torch.nn.Parameter(own.model.lm_head.weight * 3e38)
    with pytest.raises(CheckpointError) as caught:
        Engine(own, sizes=SIZES)
    assert caught.value.message == (
        "the self-test gave nan or inf scores; the weights are damaged, or too large for their dtype"
    )


def test_a_tokenizer_without_the_usual_token_is_no_hindrance(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(own.tokenizer), "convert_tokens_to_ids", lambda *_: 10**6)
    Engine(own, sizes=SIZES).close()
