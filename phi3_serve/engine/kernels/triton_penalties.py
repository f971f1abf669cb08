"""Penalties on tokens that prompt or answer have already, and biases of tokens, in Triton."""

import triton
import triton.language as tl

FLOATS = ("encoder_repetition_penalty", "repetition_penalty", "presence_penalty", "frequency_penalty")
"""The parameters that ``penalised`` honours. It takes the inverse of the first."""


@triton.jit
def biased(scores, column, tokens, values, first, stop):  # type: ignore[no-untyped-def]
    """``scores`` of one row with ``values`` from ``first`` up to ``stop`` added to those of their ``tokens``."""
    for edit in range(first, stop):
        scores = tl.where(column == tl.load(tokens + edit), scores + tl.load(values + edit), scores)
    return scores


@triton.jit
def penalised(scores, counts, floats):  # type: ignore[no-untyped-def]
    """``scores`` of one row as ``processors.process`` gives them with penalties alone, to the last bit.

    ``counts``: for each token twice how often the answer has it, and one more if the prompt has it.

    ``floats``: see ``FLOATS``.
    """
    scores = tl.where(counts % 2 > 0, _repeated(scores, tl.load(floats)), scores)
    scores = tl.where(counts > 0, _repeated(scores, tl.load(floats + 1)), scores)
    in_answer = counts // 2
    penalty = tl.load(floats + 2) + tl.load(floats + 3) * in_answer.to(tl.float32)
    return tl.where(in_answer > 0, scores - penalty, scores)


@triton.jit
def _repeated(scores, penalty):  # type: ignore[no-untyped-def]
    return tl.where(scores < 0.0, scores * penalty, tl.div_rn(scores, penalty))
