"""The token of each row from its logits, in Triton.

A program holds all scores of one row. The draw adds Gumbel noise to the scores and takes the largest sum, which is a
draw from their softmax (the Gumbel-max trick).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.engine.kernels.triton_warpers import FLOATS, warped
from phi3_serve.resolved_parameters import ResolvedParameters

NUM_WARPS = 16

_NUM_FLOATS = tl.constexpr(6)
_NUM_INTS = tl.constexpr(3)
_NO_TOKEN = tl.constexpr(-1)


def packed(rows: Sequence[tuple[ResolvedParameters, int]]) -> tuple[Any, Any]:
    """The arguments ``floats`` and ``ints`` of ``choose_tokens`` for (parameters, min_tokens_to_keep), numpy arrays."""
    floats = np.array([[getattr(p, name) for name in FLOATS] for p, _ in rows], dtype=np.float32)
    ints = np.array([(not p.is_greedy, p.top_k, kept) for p, kept in rows], dtype=np.int32)
    return floats, ints


def choose_tokens(logits: Tensor, floats: Tensor, ints: Tensor, seed: Tensor, tokens: Tensor) -> None:
    """Write the token of each row to ``tokens``: the first of the largest scores, or a draw of what ``warped`` leaves.

    Args:
        logits: [rows, vocabulary].
        floats: float32 [rows, 6], see ``warped``.
        ints: int32 [rows, 3]: 0 greedy or 1 drawn; and see ``warped``.
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
    is_drawn = tl.load(ints + row * _NUM_INTS) > 0
    if is_drawn & (highest > float("-inf")):
        scores = warped(scores, column, floats + row * _NUM_FLOATS, ints + row * _NUM_INTS + 1, VOCAB)
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
