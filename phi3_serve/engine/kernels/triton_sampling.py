"""The token of each row from its logits, in Triton, without sorting the vocabulary.

A program holds all scores of one row. Thresholds (the k-th largest score, the edge of the nucleus) are found by
bisection over the bits of the scores, whose order as integers is that of the scores. The draw adds Gumbel noise to the
scores and takes the largest sum, which is a draw from their softmax (the Gumbel-max trick).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.resolved_parameters import ResolvedParameters

NUM_FLOATS = 3  # temperature, top_p, min_p
NUM_INTS = 3  # whether to draw, top_k, min_tokens_to_keep
NUM_WARPS = 16

_NO_TOKEN = tl.constexpr(-1)


WARPERS = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""The parameters that ``choose_tokens`` honours."""


def packed(rows: Sequence[tuple[ResolvedParameters, int]]) -> tuple[Any, Any]:
    """The arguments ``floats`` and ``ints`` of ``choose_tokens`` for (parameters, min_tokens_to_keep), numpy arrays."""
    floats = np.array([(p.temperature, p.top_p, p.min_p) for p, _ in rows], dtype=np.float32)
    ints = np.array([(not p.is_greedy, p.top_k, kept) for p, kept in rows], dtype=np.int32)
    return floats, ints


def choose_tokens(logits: Tensor, floats: Tensor, ints: Tensor, seed: Tensor, tokens: Tensor) -> None:
    """Write the token of each row to ``tokens``: the first of the largest scores, or a draw.

    Scores are divided by the temperature; then top_k, top_p and min_p rule tokens out as ``warpers.warp`` does. Of
    tokens with equal scores at the edge of the nucleus, those with the lowest ids are ruled out.

    Args:
        logits: [rows, vocabulary].
        floats: float32 [rows, 3]: temperature, top_p (1: off), min_p (0: off).
        ints: int32 [rows, 3]: 0 greedy or 1 drawn, top_k (0: off), the number of tokens that no warper rules out.
        seed: int64 [2]: a seed and the number of the step.
        tokens: int32 [rows]. A row whose scores are not numbers, or all -inf, gets -1.
    """
    rows, vocab_size = logits.shape
    _choose[(rows,)](
        logits, floats, ints, seed, tokens, logits.stride(0), vocab_size, next_power_of_2(vocab_size),
        num_warps=NUM_WARPS,
    )  # fmt: skip


@triton.jit
def _choose(logits, floats, ints, seed, tokens, stride, VOCAB: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    is_token = column < VOCAB
    scores = tl.load(logits + row.to(tl.int64) * stride + column, mask=is_token, other=float("-inf")).to(tl.float32)
    highest = tl.max(scores, 0)
    has_nan = tl.max((scores != scores).to(tl.int32), 0) > 0
    is_drawn = tl.load(ints + row * 3) > 0
    if is_drawn & (highest > float("-inf")):
        temperature = tl.load(floats + row * 3)
        top_p = tl.load(floats + row * 3 + 1)
        min_p = tl.load(floats + row * 3 + 2)
        top_k = tl.load(ints + row * 3 + 1)
        keep = tl.load(ints + row * 3 + 2)
        scores = scores / temperature
        scores = _top_k(scores, top_k, keep, VOCAB)
        scores = _top_p(scores, column, top_p, keep)
        scores = _min_p(scores, column, min_p, keep)
        scores = scores + _gumbel_noise(seed, row, column)
        highest = tl.max(scores, 0)
    token = tl.min(tl.where((scores == highest) & is_token, column, BLOCK), 0)
    is_valid = (token < VOCAB) & (highest > float("-inf")) & (has_nan == 0)
    tl.store(tokens + row, tl.where(is_valid, token, _NO_TOKEN))


@triton.jit
def _gumbel_noise(seed, row, column):  # type: ignore[no-untyped-def]
    """Noise whose largest sum with the scores is a draw from their softmax."""
    key = tl.load(seed) + tl.load(seed + 1) * 65536 + row  # Philox needs only different keys
    uniform = tl.rand(key, column)
    return -tl.log(-tl.log(tl.maximum(uniform, 1e-10)) + 1e-20)


@triton.jit
def _ordered(scores):  # type: ignore[no-untyped-def]
    """int32 numbers in the order of ``scores``."""
    bits = scores.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _midpoint(low, high):  # type: ignore[no-untyped-def]
    """Between two int32 numbers, rounded up, without overflow."""
    return (low.to(tl.int64) + (high.to(tl.int64) - low.to(tl.int64) + 1) // 2).to(tl.int32)


@triton.jit
def _kth_largest(keys, count):  # type: ignore[no-untyped-def]
    """The largest key that at least ``count`` keys reach."""
    low, high = tl.min(keys, 0), tl.max(keys, 0)
    while low < high:
        middle = _midpoint(low, high)
        is_reached = tl.sum((keys >= middle).to(tl.int32), 0) >= count
        low = tl.where(is_reached, middle, low)
        high = tl.where(is_reached, high, middle - 1)
    return low


@triton.jit
def _top_k(scores, top_k, keep, VOCAB: tl.constexpr):  # type: ignore[no-untyped-def]
    if top_k > 0:
        keys = _ordered(scores)
        threshold = _kth_largest(keys, tl.minimum(tl.maximum(top_k, keep), VOCAB))
        scores = tl.where(keys >= threshold, scores, float("-inf"))
    return scores


@triton.jit
def _top_p(scores, column, top_p, keep):  # type: ignore[no-untyped-def]
    """Rule out the least likely tokens whose probabilities sum to at most 1 - top_p, but for ``keep`` of them."""
    if top_p < 1.0:
        keys = _ordered(scores)
        weights = tl.exp(scores - tl.max(scores, 0))
        limit = (1.0 - top_p) * tl.sum(weights, 0)
        low, high = tl.min(keys, 0), tl.max(keys, 0)
        while low < high:  # the lowest key whose tokens are not all ruled out
            middle = _midpoint(low, high)
            is_ruled_out = tl.sum(tl.where(keys < middle, weights, 0.0), 0) <= limit
            low = tl.where(is_ruled_out, middle, low)
            high = tl.where(is_ruled_out, high, middle - 1)
        below = tl.sum(tl.where(keys < low, weights, 0.0), 0)
        is_edge = keys == low
        weight = tl.max(tl.where(is_edge, weights, 0.0), 0)
        num_edge = tl.sum(is_edge.to(tl.int32), 0)
        num_above = tl.sum((keys > low).to(tl.int32), 0)
        fitting = tl.where(weight > 0.0, (limit - below) / weight, 0.0)
        num_removed = tl.minimum(tl.maximum(fitting, 0.0), num_edge.to(tl.float32)).to(tl.int32)
        num_removed = tl.minimum(num_removed, num_edge + num_above - tl.maximum(keep, 1))
        rank = tl.cumsum(is_edge.to(tl.int32), 0)
        if num_removed < 0:  # more tokens than those above the edge have to stay
            threshold = _kth_largest(keys, keep)
            scores = tl.where(keys >= threshold, scores, float("-inf"))
        else:
            is_removed = (keys < low) | (is_edge & (rank <= num_removed))
            scores = tl.where(is_removed, float("-inf"), scores)
    return scores


@triton.jit
def _min_p(scores, column, min_p, keep):  # type: ignore[no-untyped-def]
    if min_p > 0.0:
        keys = _ordered(scores)
        weights = tl.exp(scores - tl.max(scores, 0))
        is_kept = (weights >= min_p) | (keys >= _kth_largest(keys, keep))
        scores = tl.where(is_kept, scores, float("-inf"))
    return scores
