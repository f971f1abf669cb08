"""The biases of token sequences against SequenceBiasLogitsProcessor, to the last bit."""

import random
import time
from array import array

import numpy as np
import torch
from transformers import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from phi3_serve.engine.sampling.biases import SequenceBiases

VOCAB = 40


def biased(scores: torch.Tensor, history: list[int], biases: SequenceBiases) -> torch.Tensor:
    result = scores.clone()
    found = biases.after(array("q", history))
    if found is not None:
        tokens, values = found
        assert len(set(tokens.tolist())) == len(tokens)
        result[torch.from_numpy(tokens)] += torch.from_numpy(values)
    return result


def test_scores_are_those_of_transformers() -> None:
    draw = random.Random(3)
    num_matches = 0
    for _ in range(400):
        few = draw.choice([2, 3, VOCAB])  # few different tokens, so that many sequences match
        history = [draw.randrange(few) for _ in range(draw.randint(1, 12))]
        pairs = [
            ([draw.randrange(few) for _ in range(draw.choice([1, 1, 2, 3, 5, 13, 14]))], draw.uniform(-9, 9))
            for _ in range(draw.randint(1, 60))
        ]
        scores = torch.randn(VOCAB, generator=torch.Generator().manual_seed(draw.randrange(2**30)))
        theirs = SequenceBiasLogitsProcessor([[ids, bias] for ids, bias in pairs])(
            torch.tensor([history]), scores[None]
        )
        ours = biased(scores, history, SequenceBiases(pairs))
        assert torch.equal(ours, theirs[0])
        num_matches += bool((ours != scores).any())
    assert num_matches > 300


def test_bans_are_those_of_transformers() -> None:
    draw = random.Random(4)
    for _ in range(100):
        history = [draw.randrange(3) for _ in range(draw.randint(1, 6))]
        banned = [[draw.randrange(3) for _ in range(draw.randint(1, 4))] for _ in range(10)]
        scores = torch.randn(VOCAB)
        theirs = NoBadWordsLogitsProcessor(banned)(torch.tensor([history]), scores[None])
        assert torch.equal(biased(scores, history, SequenceBiases([(ids, -np.inf) for ids in banned])), theirs[0])


def test_there_may_be_none() -> None:
    assert not SequenceBiases([])
    assert SequenceBiases([([1, 2], 1.0)])
    assert SequenceBiases([([1, 2], 1.0)]).after(array("q", [2])) is None


def test_what_float32_cannot_hold_is_infinite() -> None:
    found = SequenceBiases([([1], 1e300), ([2], -1e300)]).after(array("q", [0]))
    assert found is not None
    assert found[1].tolist() == [np.inf, -np.inf]


def test_a_step_costs_only_the_sequences_that_match() -> None:
    """A comparison with all of them takes 7 ms."""
    draw = random.Random(5)
    pairs = [([draw.randrange(1000) for _ in range(900)], 1.0) for _ in range(1024)]
    biases = SequenceBiases(pairs)
    history = array("q", [draw.randrange(1000) for _ in range(1000)])
    best = np.inf
    for _ in range(20):
        began = time.perf_counter()
        biases.after(history)
        best = min(best, time.perf_counter() - began)
    assert best < 0.0005
