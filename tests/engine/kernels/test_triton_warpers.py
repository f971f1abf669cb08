"""What the kernel that chooses tokens may draw is what the engine's warpers leave, token for token.

``tests/engine/sampling/test_warpers.py`` compares these warpers with transformers.
"""

import random
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.engine.kernels.triton_sampling import packed
from phi3_serve.engine.kernels.triton_warpers import warped
from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreSettings
from phi3_serve.engine.sampling.warpers import requested, warp
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve

VALUES: dict[str, tuple[float, ...]] = {
    "temperature": (0.1, 0.7, 2.5),
    "top_k": (1, 2, 10, 100, 5000),
    "top_p": (0.0, 0.05, 0.5, 0.9, 0.999),
    "min_p": (0.01, 0.2, 1.0),
    "typical_p": (1e-3, 0.05, 0.5, 0.9, 0.99),
    "epsilon_cutoff": (1e-5, 1e-3, 0.02, 0.3),
    "eta_cutoff": (1e-5, 1e-3, 0.02, 0.3, 0.9),
}
NUM_ROWS = 12
EDGE = 2e-6  # of a probability or of a sum of them: what the two may round to either side of a limit


@triton.jit  # type: ignore[untyped-decorator]
def _warp(scores, floats, ints, output, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    is_token = column < VOCAB
    of_row = tl.load(scores + row * VOCAB + column, mask=is_token, other=float("-inf")).to(tl.float32)
    of_row = warped(of_row, column, floats + row * 6, ints + row * 3 + 1, VOCAB)
    tl.store(output + row * VOCAB + column, of_row, mask=is_token)


def of_kernel(scores: Tensor, rows: list[ScoreSettings]) -> Tensor:
    output = torch.empty(scores.shape)
    arrays = packed([(row.parameters, row.min_tokens_to_keep) for row in rows])
    floats, ints = (torch.from_numpy(array) for array in arrays)
    _warp[(len(rows),)](scores, floats, ints, output, scores.shape[1], next_power_of_2(scores.shape[1]))
    return output


def settings(given: dict[str, Any]) -> ScoreSettings:
    parameters = resolve(GenerationParameters(**{"top_k": 0, "do_sample": True, **given}), GenerationParameters())
    return ScoreSettings(prepare("", (5,), parameters, context_length=8, timeout_s=1))


def drawn_scores(draw: random.Random, vocab: int) -> Tensor:
    """Of rows with many ties, with tokens ruled out, flat, peaked or with one likely token."""
    scores = torch.randn(NUM_ROWS, vocab) * draw.choice((0.3, 1.0, 3.0, 12.0))
    for row in scores:
        if draw.random() < 0.3:
            row.copy_((row * 2).round() / 2)
        if draw.random() < 0.3:
            row.masked_fill_(torch.rand(vocab) < draw.choice((0.3, 0.99)), RULED_OUT)
            row[draw.randrange(vocab)] = 0.5
        if draw.random() < 0.2:
            row[draw.randrange(vocab)] = row.amax() + 4
    return scores


def are_same(some: Tensor, others: Tensor) -> bool:
    """Whether the same scores are left. Which of equal ones are beyond the nucleus is nobody's promise."""
    has_as_many = int(some.isinf().sum()) == int(others.isinf().sum())
    return has_as_many and torch.allclose(some.sort().values, others.sort().values)


def is_near_an_edge(scores: Tensor, of: ScoreSettings, found: Tensor) -> bool:
    """Whether other settings that round differently leave the tokens of ``found``."""
    p = of.parameters
    names = [name for name in requested(p) if name in {"top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"}]
    values = {name: getattr(p, name) for name in names}
    for name, value in values.items():
        for other in (value * (1 - EDGE), value * (1 + EDGE), value - EDGE, value + EDGE):
            object.__setattr__(p, name, other)
            is_same = are_same(warp(scores[None].clone(), [of])[0], found)
            object.__setattr__(p, name, value)
            if is_same:
                return True
    return False


def check(draw: random.Random, vocab: int, dtype: torch.dtype) -> int:
    """Compare rows of random settings; returns how many rows are at an edge."""
    rows = []
    for _ in range(NUM_ROWS):
        names = draw.sample(list(VALUES), draw.choice((1, 1, 2, 3, 7)))
        rows.append(settings({name: draw.choice(VALUES[name]) for name in names}))
    logits = drawn_scores(draw, vocab).to(dtype)
    expected, found = warp(logits.float().clone(), rows), of_kernel(logits, rows)
    num_edges = 0
    for index, row in enumerate(rows):
        scaled = logits[index].float() / row.parameters.temperature
        assert ((found[index] == RULED_OUT) | torch.isclose(found[index], scaled)).all()
        if are_same(found[index], expected[index]):
            continue
        num_edges += 1
        given = {name: getattr(row.parameters, name) for name in requested(row.parameters)}
        counts = [int((of > RULED_OUT).sum()) for of in (found[index], expected[index])]
        assert is_near_an_edge(logits[index].float(), row, found[index]), (given, counts)
    return num_edges


@pytest.mark.parametrize("vocab", [1, 3, 64, 704])
def test_random_rows(vocab: int) -> None:
    draw = random.Random(vocab)
    torch.manual_seed(vocab)
    rounds = 6
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    num_edges = sum(check(draw, vocab, dtypes[number % 3]) for number in range(rounds))
    assert num_edges < 0.1 * rounds * NUM_ROWS


def test_the_vocabulary_of_the_models() -> None:
    torch.manual_seed(5)
    check(random.Random(5), 32_064, torch.bfloat16)
