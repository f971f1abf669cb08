"""On a CPU the scores of a token have the same bits alone, beside other requests, and however its prompt is cut.

That is more than equal answers: no rounding depends on what else the engine runs. It holds for the weights of released
checkpoints, which have 16 bits, and for rounded ones, computed in float32.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.core.engine_event import Finished
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.kernels.half_panels import multiplies_halves
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.model.select import new_runner
from tests.engine.parity import COMPANY, KINDS, Parity, store_as
from tests.random_checkpoint import Shape, make

NUM_TOKENS = 300
NUM_STRANGERS = 3
BLOCKS_OF_ONE = 30
CROSSING = 96  # tokens; from the next one on RoPE takes its long factors

SHAPES = {
    "mini": Shape(hidden_size=192, num_heads=2, num_kv_heads=2, intermediate_size=160, sliding_window=130),
    "medium": Shape(hidden_size=512, num_heads=4, num_kv_heads=1, intermediate_size=96),
    "128k": Shape(
        hidden_size=80, num_heads=2, num_kv_heads=1, context_length=CROSSING, long_context_length=4 * CROSSING
    ),
}
STORED = ("bfloat16", "float16", "int8", "int4")
CACHES = ("auto", "int8")

pytestmark = pytest.mark.skipif(not multiplies_halves(), reason="this processor has no wide vectors, or no compiler")


def runner(directory: Path, shape: str, stored: str, cache: Any) -> ModelRunner:
    """A runner for random weights that are stored in 16 bits, or rounded from them, and computed in float32."""
    make(directory, SHAPES[shape], seed=7)
    store_as(directory, getattr(torch, stored) if stored.startswith(("bfloat", "float")) else torch.bfloat16)
    quantization = stored if stored.startswith("int") else "none"
    model = load("tested", str(directory), None, device="cpu", dtype="float32", quantization=quantization).model
    made = new_runner(model, EngineSizes(200, 4096, 16, kv_cache_dtype=cache))
    assert isinstance(made, ModelRunner)
    return made


class Sequences:
    """Sequences of random tokens, each with blocks of its own anywhere in the cache; number 0 is the one looked at."""

    def __init__(self, shape: Shape, seed: int) -> None:
        draw = Random(seed)
        blocks = draw.sample(range(200), (1 + NUM_STRANGERS) * BLOCKS_OF_ONE)
        self.sequences = []
        for number in range(1 + NUM_STRANGERS):
            tokens = Random(number).choices(range(3, 300), k=NUM_TOKENS)
            sequence = CachedSequence(tokens, long_factors_from=CROSSING + 1 if shape.long_context_length else None)
            sequence.block_table = array("i", blocks[number * BLOCKS_OF_ONE : (number + 1) * BLOCKS_OF_ONE])
            self.sequences.append(sequence)

    def step(self, runner: ModelRunner, counts: Sequence[tuple[int, int]]) -> Tensor:
        """The scores of the tokens of number 0; ``counts``: (number, tokens) of each chunk in the step."""
        chunks = [Chunk(self.sequences[number], count, count if number == 0 else 1) for number, count in counts]
        before = sum(chunk.num_logits for chunk in chunks[: [number for number, _ in counts].index(0)])
        scores = runner.run(chunks)[before:]
        for chunk in chunks:
            chunk.sequence.num_cached += chunk.num_tokens
        return scores[: dict(counts)[0]]


def cut(total: int, draw: Random) -> Iterator[int]:
    """Sizes of chunks that are ``total`` tokens together: decoded tokens, drafts, parts of prompts."""
    while total:
        count = min(total, draw.choice((1, 2, draw.randint(3, 8), draw.randint(9, 40), draw.randint(41, 200))))
        yield count
        total -= count


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_have_the_same_bits_in_every_batch(shape: str, stored: str, cache: str, tmp_path: Path) -> None:
    expect_the_same_bits(runner(tmp_path, shape, stored, cache), shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_so_at_every_level_of_instructions(shape: str, each_level: str, tmp_path: Path) -> None:
    """Without wide vectors, weights in 16 bits become float32, and those in 8 bits stay as they are."""
    expect_the_same_bits(runner(tmp_path, shape, "int8" if each_level == "any" else "bfloat16", "auto"), shape)


def expect_the_same_bits(tested: ModelRunner, shape: str) -> None:
    """One sequence in one chunk, token by token, and in any chunks beside others."""
    alone = Sequences(SHAPES[shape], 0).step(tested, [(0, NUM_TOKENS)])
    assert alone.isfinite().all()
    one_by_one = Sequences(SHAPES[shape], 1)
    assert torch.equal(torch.cat([one_by_one.step(tested, [(0, 1)]) for _ in range(NUM_TOKENS)]), alone)
    for seed in range(2, 6):
        draw, mixed = Random(seed), Sequences(SHAPES[shape], seed)
        scores, left = [], [NUM_TOKENS] * (1 + NUM_STRANGERS)
        for count in cut(NUM_TOKENS, draw):
            left[0] -= count
            counts = [(0, count)]
            for number in range(1, 1 + NUM_STRANGERS):
                if left[number] and draw.random() < 0.7:
                    others = min(left[number], draw.choice((1, 5, 30, 100)))
                    left[number] -= others
                    counts.insert(draw.randint(0, len(counts)), (number, others))
            scores.append(mixed.step(tested, counts))
        assert torch.equal(torch.cat(scores), alone), f"seed {seed}"


def with_scores(asked: EngineRequest) -> EngineRequest:
    """``asked`` with all numbers in its answer, so that no difference stays unseen."""
    top_logprobs = None if asked.parameters.is_beam_search else 5
    return replace(asked, parameters=replace(asked.parameters, output_scores=True, top_logprobs=top_logprobs))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_answers_have_the_same_bits_in_company_and_alone(kind: str, tmp_path: Path) -> None:
    """In company, requests share steps, prefixes and too little memory, and some are preempted amid their answer."""
    parity = Parity(tmp_path, KINDS[kind].shape, quantization="stored-bfloat16", with_adapters=kind == "plain")
    drawn = parity.cases(60, guided=KINDS[kind].guided)
    num_finished = 0
    for _ in range(2):
        asked = [with_scores(case.request) for case in islice(drawn, COMPANY)]
        for one, (_, in_company) in zip(asked, parity.answers(asked), strict=True):
            [(_, alone)] = parity.answers([one])
            assert type(in_company) is type(alone)
            if isinstance(in_company, Finished) and isinstance(alone, Finished):
                assert repr(in_company.sequences) == repr(alone.sequences), one.parameters  # repr: nan is nan
                num_finished += 1
    assert num_finished > COMPANY
    parity.close()
