"""What the kernel that chooses tokens may draw is what the engine's processors and warpers leave, token for token.

``tests/engine/sampling`` and ``tests/engine/parity.py`` compare these with transformers.
"""

import random
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.engine.kernels.triton_penalties import biased, penalised
from phi3_serve.engine.kernels.triton_sampling import PackedRow, choose_tokens, packed
from phi3_serve.engine.kernels.triton_warpers import warped
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.sampling.penalties import PROCESSORS
from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreRow, ScoreSettings, process
from phi3_serve.engine.sampling.score_edits import Phase, edits
from phi3_serve.engine.sampling.token_counts import counted
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
PENALTIES: dict[str, tuple[float, ...]] = {
    "encoder_repetition_penalty": (0.7, 1.0, 1.3, 5.0),
    "repetition_penalty": (0.6, 1.0, 1.1, 3.0),
    "presence_penalty": (-1.5, 0.0, 0.3, 2.0),
    "frequency_penalty": (-0.7, 0.0, 0.1, 2.0),
}
NUM_ROWS = 20
EDGE = 2e-6  # of a probability or of a sum of them: what the two may round to either side of a limit


@triton.jit  # type: ignore[untyped-decorator]
def _process(scores, floats, ints, edited, added, counts, output, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    is_token = column < VOCAB
    of_row = tl.load(scores + row * VOCAB + column, mask=is_token, other=float("-inf")).to(tl.float32)
    of_row = biased(of_row, column, edited, added, tl.load(ints + row * 6 + 4), tl.load(ints + row * 6 + 5))
    if tl.load(ints + row * 6) >= 0:
        of_tokens = tl.load(counts + row * VOCAB + column, mask=is_token, other=0)
        of_row = penalised(of_row, of_tokens, floats + row * 10)
    if tl.load(ints + row * 6 + 1) > 0:
        of_row = warped(of_row, column, floats + row * 10 + 4, ints + row * 6 + 2, VOCAB)
    tl.store(output + row * VOCAB + column, of_row, mask=is_token)


def of_kernel(scores: Tensor, rows: list[ScoreRow]) -> tuple[Tensor, list[int], Tensor]:
    """The scores that are left, the tokens that are chosen from them, and the counts with these tokens."""
    vocab = scores.shape[1]
    output, tokens = torch.empty(scores.shape), torch.empty(len(rows), dtype=torch.int32)
    of_rows = []
    for number, row in enumerate(rows):
        of = row.settings
        added = edits(of, Phase.of(of, len(row.history)))
        of_rows.append(PackedRow(of.parameters, slot=number if is_penalised(row) else -1, edits=added))
    floats, ints, edited, values = (torch.from_numpy(array) for array in packed(of_rows))
    counts = torch.from_numpy(np.stack([counted(sequence_of(row), vocab) for row in rows]))
    _process[(len(rows),)](scores, floats, ints, edited, values, counts, output, vocab, next_power_of_2(vocab))
    choose_tokens(scores, floats, ints, (edited, values), counts, torch.tensor([3, vocab]), tokens)
    return output, tokens.tolist(), counts


def is_penalised(row: ScoreRow) -> bool:
    return not PROCESSORS.isdisjoint(row.settings.processors)


def sequence_of(row: ScoreRow) -> CachedSequence:
    sequence = CachedSequence(row.history[: row.settings.num_prompt_tokens])
    sequence.tokens.extend(row.history[row.settings.num_prompt_tokens :])
    return sequence


def row_of(given: dict[str, Any], history: Sequence[int], num_prompt_tokens: int) -> ScoreRow:
    parameters = resolve(GenerationParameters(**{"top_k": 0, "do_sample": True, **given}), GenerationParameters())
    prompt = history[:num_prompt_tokens]
    settings = ScoreSettings(prepare("", prompt, parameters, context_length=1000, timeout_s=1))
    return ScoreRow(settings, array("q", history), 0)


def drawn_row(draw: random.Random, vocab: int) -> ScoreRow:
    """Greedy or drawn, with warpers, with penalties, with both or with none, and tokens that come several times."""
    names = draw.sample(list(VALUES), draw.choice((0, 1, 1, 2, 3, 7)))
    given: dict[str, Any] = {name: draw.choice(VALUES[name]) for name in names}
    names = draw.sample(list(PENALTIES), draw.choice((0, 1, 2, 4)))
    given |= {name: draw.choice(PENALTIES[name]) for name in names}
    given["do_sample"] = draw.random() < 0.8
    if draw.random() < 0.5:
        given["repeat_last_n"] = draw.choice((-1, 0))
    if vocab > 3 and draw.random() < 0.5:
        given |= drawn_edits(draw, vocab)
    length = draw.choice((1, 3, 50, 300))
    num_prompt_tokens = draw.choice((length, draw.randint(1, length)))
    return row_of(given, [draw.randrange(vocab) for _ in range(length)], num_prompt_tokens)


def drawn_edits(draw: random.Random, vocab: int) -> dict[str, Any]:
    """Biases and bans of single tokens, some of them of the same tokens."""

    def ids() -> list[int]:
        return [draw.randrange(vocab) for _ in range(draw.randint(1, 8))]

    given = {
        "sequence_bias": [((token,), draw.choice((3.0, -2.0, 0.3))) for token in ids()],
        "bad_words_ids": [[token] for token in ids()],
        "suppress_tokens": ids(),
        "begin_suppress_tokens": ids(),
        "min_length": draw.choice((2, 51, 301)),
        "eos_token_id": ids(),
    }
    return {name: given[name] for name in draw.sample(list(given), draw.randint(1, len(given)))}


def drawn_scores(draw: random.Random, vocab: int) -> Tensor:
    """Of rows with many ties, with tokens ruled out, flat, peaked or with one likely token."""
    scores = torch.randn(NUM_ROWS, vocab) * draw.choice((0.3, 1.0, 3.0, 12.0))
    for row in scores:
        if draw.random() < 0.5:
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
    """Whether other warpers that round differently leave the tokens of ``found``."""
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
    rows = [drawn_row(draw, vocab) for _ in range(NUM_ROWS)]
    logits = drawn_scores(draw, vocab).to(dtype)
    processed = logits.float().clone()
    process(processed, rows, logits)
    left, tokens, counts = of_kernel(logits, rows)
    num_edges = 0
    for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
        p = row.settings.parameters
        given = {name: getattr(p, name) for name in (*VALUES, *PENALTIES, "do_sample", "repeat_last_n")}
        assert left[index, token] > RULED_OUT, given
        if is_penalised(row):
            row.history.append(token)
            assert counts[index].tolist() == counted(sequence_of(row), vocab).tolist(), given
        if not p.do_sample:
            assert torch.equal(left[index], processed[index]), given
            assert token == processed[index].argmax(), given
            continue
        scaled = processed[index] / p.temperature
        assert ((left[index] == RULED_OUT) | torch.isclose(left[index], scaled)).all(), given
        expected = warp(processed[index : index + 1].clone(), [row.settings])[0]
        if not are_same(left[index], expected):
            num_edges += 1
            assert is_near_an_edge(processed[index], row.settings, left[index]), given
    return num_edges


@pytest.mark.parametrize("vocab", [1, 3, 64, 704])
def test_random_rows(vocab: int) -> None:
    draw = random.Random(vocab)
    torch.manual_seed(vocab)
    rounds = 8
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    num_edges = sum(check(draw, vocab, dtypes[number % 3]) for number in range(rounds))
    assert num_edges < 0.1 * rounds * NUM_ROWS


def test_the_vocabulary_of_the_models() -> None:
    torch.manual_seed(5)
    check(random.Random(5), 32_064, torch.bfloat16)


@pytest.mark.parametrize(
    "given", [{"epsilon_cutoff": 0.3}, {"min_p": 1.0}, {"typical_p": 1e-6}, {"top_p": 0.0}], ids=str
)
def test_a_token_is_left_however_flat_the_scores(given: dict[str, float]) -> None:
    logits = torch.arange(64.0)[None] * 1e-3
    row = row_of(given, [5], 1)
    left = of_kernel(logits, [row])[0]
    assert (left > RULED_OUT).tolist() == (warp(logits.clone(), [row.settings]) > RULED_OUT).tolist()
    assert (left > RULED_OUT).sum() == 1
