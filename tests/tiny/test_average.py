"""The mean of two checkpoints: of the same start only, and weight by weight."""

import json
from pathlib import Path

import pytest
import torch
import typer
from transformers import Phi3ForCausalLM

from phi3_serve.tiny import average
from phi3_serve.tiny.random_checkpoint import Shape, make


def checkpoint(directory: Path, seed: int, *, first_seed: int) -> Path:
    make(directory, Shape(), seed=seed)
    stages = [{"seed": s, "rounds": 1, "tokens": 1, "seconds": 1.0} for s in (first_seed, seed)]
    (directory / "training.json").write_text(json.dumps(stages))
    return directory


def test_every_weight_is_the_mean(tmp_path: Path) -> None:
    one, other = (checkpoint(tmp_path / str(seed), seed, first_seed=0) for seed in (1, 2))
    _, model = average.mean(one, other)
    first, second = (Phi3ForCausalLM.from_pretrained(d, dtype=torch.float32).state_dict() for d in (one, other))
    assert first.keys() == model.state_dict().keys()
    assert any((first[name] != second[name]).any() for name in first)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2)


def test_another_start_is_refused(tmp_path: Path) -> None:
    one, other = (checkpoint(tmp_path / str(seed), seed, first_seed=seed) for seed in (1, 2))
    with pytest.raises(typer.BadParameter, match="did not go on from the same"):
        average.main(one, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
