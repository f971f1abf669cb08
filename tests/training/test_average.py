"""The mean of two checkpoints: of related ones only, and weight by weight."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from transformers import Phi3ForCausalLM

from tests.random_checkpoint import Shape, make
from training import average, card
from training.card import Stage


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


def test_what_became_of_a_checkpoint_is_joined_with_it() -> None:
    first, second, third, fourth = (Stage(seed, rounds=1, tokens=1, seconds=1.0) for seed in range(4))
    assert average.joined([first, second], [first, third]) == [first, second, replace(third, beside=True)]
    both = average.joined([first, second], [first, second, third, fourth])
    assert both == [first, second, third, replace(fourth, mean_with=2)]
    assert "the mean of this training and that of seed 1" in card._in_words(both)
    with pytest.raises(typer.BadParameter):
        average.joined([first, third], [first, second, fourth])


def test_another_start_is_refused(tmp_path: Path) -> None:
    one, other = (checkpoint(tmp_path / str(seed), seed, first_seed=seed) for seed in (1, 2))
    with pytest.raises(typer.BadParameter, match="did not go on from the same"):
        average.main(one, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
