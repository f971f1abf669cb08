"""The token of each row from its logits, in Triton.

A program holds all scores of one row. The draw adds Gumbel noise to the scores and takes the largest sum, which is a
draw from their softmax (the Gumbel-max trick).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.engine.kernels.triton_penalties import biased, penalised
from phi3_serve.engine.kernels.triton_warpers import FLOATS, warped
from phi3_serve.resolved_parameters import ResolvedParameters

NUM_WARPS = 16

_NUM_FLOATS = tl.constexpr(10)
_NUM_PENALTIES = tl.constexpr(4)  # the first of them
_NUM_INTS = tl.constexpr(6)
_NO_TOKEN = tl.constexpr(-1)


class PackedRow(NamedTuple):
    """What a token is chosen with."""

    parameters: ResolvedParameters
    min_tokens_to_keep: int = 1
    slot: int = -1  # the row of the counts; -1: no penalties
    edits: Mapping[int, float] = {}  # what is added to the scores of tokens


def packed(rows: Sequence[PackedRow]) -> tuple[Any, Any, Any, Any]:
    """The arguments ``floats``, ``ints`` and ``edits`` of ``choose_tokens``, numpy arrays."""
    floats, ints = [], []
    tokens, values = [0], [0.0]  # never empty
    for p, keep, slot, edits in rows:
        floats.append((*_penalties(p), *(getattr(p, name) for name in FLOATS)))
        ints.append((slot, not p.is_greedy, p.top_k, keep, len(tokens), len(tokens) + len(edits)))
        tokens += edits.keys()
        values += edits.values()
    of_rows = np.array(floats, dtype=np.float32), np.array(ints, dtype=np.int32)
    return *of_rows, np.array(tokens, dtype=np.int32), np.array(values, dtype=np.float32)


def _penalties(p: ResolvedParameters) -> tuple[float, float, float, float]:
    """See ``triton_penalties.FLOATS``."""
    repetition = p.repetition_penalty if p.repeat_last_n else 1.0
    return 1 / p.encoder_repetition_penalty, repetition, p.presence_penalty, p.frequency_penalty


def choose_tokens(
    logits: Tensor,
    floats: Tensor,
    ints: Tensor,
    edits: tuple[Tensor, Tensor],
    counts: Tensor,
    seed: Tensor,
    tokens: Tensor,
) -> None:
    """Write the token of each row to ``tokens``: the first of the largest scores, or a draw of what ``warped`` leaves.

    The token is added to the counts of the row.

    Args:
        logits: [rows, vocabulary].
        floats: float32 [rows, 10], see ``penalised`` and ``warped``.
        ints: int32 [rows, 6]: a row of ``counts``, or -1: no penalties; 0 greedy or 1 drawn; two for ``warped``; begin
            and end of the row's ``edits``.
        edits: tokens, int32, and what is added to their scores before penalties, float32. A row has a token once.
        counts: int32 [any number, vocabulary], contiguous, see ``penalised``. No two rows have the same.
        seed: int64 [2]: a seed and the number of the step.
        tokens: int32 [rows]. A row whose scores are not numbers, or all -inf, gets -1, and so does a draw from
            scores that are infinite.
    """
    rows, vocab_size = logits.shape
    _choose[(rows,)](
        logits, floats, ints, *edits, counts, seed, tokens, logits.stride(0), vocab_size, next_power_of_2(vocab_size),
        num_warps=NUM_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _choose(  # type: ignore[no-untyped-def]
    logits, floats, ints, edited, added, counts, seed, tokens, stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    is_token = column < VOCAB
    scores = tl.load(logits + row.to(tl.int64) * stride + column, mask=is_token, other=float("-inf")).to(tl.float32)
    has_nan = tl.max((scores != scores).to(tl.int32), 0) > 0
    floats += row * _NUM_FLOATS
    ints += row * _NUM_INTS
    scores = biased(scores, column, edited, added, tl.load(ints + 4), tl.load(ints + 5))
    slot = tl.load(ints).to(tl.int64)
    if slot >= 0:
        of_tokens = tl.load(counts + slot * VOCAB + column, mask=is_token, other=0)
        scores = penalised(scores, of_tokens, floats)
    highest = tl.max(scores, 0)
    is_drawn = tl.load(ints + 1) > 0
    if is_drawn & (highest > float("-inf")):
        scores = warped(scores, column, floats + _NUM_PENALTIES, ints + 2, VOCAB)
        scores = scores + _gumbel_noise(seed, row, column)
        highest = tl.max(scores, 0)
    token = tl.min(tl.where((scores == highest) & is_token, column, BLOCK), 0)
    is_valid = (token < VOCAB) & (highest > float("-inf")) & (has_nan == 0)
    is_valid = is_valid & ((highest < float("inf")) | (is_drawn == 0))
    tl.store(tokens + row, tl.where(is_valid, token, _NO_TOKEN))
    if (slot >= 0) & is_valid:
        tl.atomic_add(counts + slot * VOCAB + token, 2)


@triton.jit
def _gumbel_noise(seed, row, column):  # type: ignore[no-untyped-def]
    """Noise whose largest sum with the scores is a draw from their softmax."""
    key = tl.load(seed) + tl.load(seed + 1) * 65536 + row  # Philox needs only different keys
    uniform = tl.rand(key, column)
    return -tl.log(-tl.log(tl.maximum(uniform, 1e-10)) + 1e-20)
