"""The search for repeated n-grams against NoRepeatNGramLogitsProcessor, and its cost on long repetitions."""

import random
import time

import numpy as np
import pytest
import torch
from torch import LongTensor
from transformers import EncoderNoRepeatNGramLogitsProcessor, NoRepeatNGramLogitsProcessor

from phi3_serve.engine.sampling.ngrams import COMPARED_ONE_BY_ONE, followers

VOCAB = 40


def banned(scores: torch.Tensor) -> list[int]:
    return torch.isinf(scores[0]).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "size", [1, 2, 3, 5, COMPARED_ONE_BY_ONE, COMPARED_ONE_BY_ONE + 1, COMPARED_ONE_BY_ONE + 2, 90]
)
def test_repeated_ngrams_are_those_of_transformers(size: int) -> None:
    draw = random.Random(size)
    num_banned = 0
    for _ in range(100):
        pattern = [draw.randrange(draw.choice([1, 2, 30])) for _ in range(draw.randint(1, 7))]
        ids = (pattern * 60)[: draw.randint(1, 250)] + [draw.randrange(3)] * draw.choice([0, 0, 0, 3])
        prompt_length = draw.randint(1, len(ids))
        array = np.array(ids)
        history, prompt = LongTensor([ids]), LongTensor([ids[:prompt_length]])
        scores = torch.zeros(1, VOCAB)
        if len(ids) >= size:
            ours = followers(array, array[len(ids) + 1 - size :])
            assert ours == banned(NoRepeatNGramLogitsProcessor(size)(history, scores.clone()))
            num_banned += len(ours)
        if len(ids) + 1 >= size:
            ours = followers(array[:prompt_length], array[len(ids) + 1 - size :])
            assert ours == banned(EncoderNoRepeatNGramLogitsProcessor(size, prompt)(history, scores.clone()))
    assert num_banned > 10


@pytest.mark.parametrize("size", [2, 1_000, 60_000, 119_999])
def test_a_long_repetition_is_searched_in_linear_time(size: int) -> None:
    """Compared token by token, 60,000 places and 60,000 tokens took seconds."""
    ids = np.full(120_000, 7)
    began = time.perf_counter()
    assert followers(ids, ids[len(ids) + 1 - size :]) == [7]
    assert time.perf_counter() - began < 0.5
