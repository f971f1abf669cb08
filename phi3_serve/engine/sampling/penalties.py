"""Penalties from counts of tokens, in place of the tokens themselves.

``processors`` applies the same penalties on the host, from the tokens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.resolved_parameters import ResolvedParameters

PROCESSORS = frozenset({"encoder_repetition", "repetition", "presence_and_frequency"})
"""The processors of ``processors`` that need no more than the counts."""

MOST = 2.0**20  # beyond it, or below its inverse, float32 may not hold a penalised score


def are_countable(settings: ScoreSettings) -> bool:
    """Whether the counts of ``TokenCounts`` are all that these processors of ``settings`` need.

    ``repeat_last_n`` is such that ``repetition_penalty`` looks at all tokens, and no score becomes infinite.
    """
    p = settings.parameters
    looks_at_all = not 0 < p.repeat_last_n < settings.max_length
    factors = (p.encoder_repetition_penalty, p.repetition_penalty)
    return looks_at_all and all(1 / MOST <= f <= MOST for f in factors)


def penalised(scores: Tensor, counts: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """``scores`` [rows, vocabulary] after the penalties of ``rows``; ``counts``: see ``TokenCounts``, of each row."""
    in_prompt, in_answer = counts % 2 > 0, counts // 2
    scores = torch.where(in_prompt, _repeated(scores, rows, lambda p: 1 / p.encoder_repetition_penalty), scores)
    scores = torch.where(counts > 0, _repeated(scores, rows, _repetition_penalty), scores)
    presence = _column(rows, lambda p: p.presence_penalty, scores)
    penalty = presence + _column(rows, lambda p: p.frequency_penalty, scores) * in_answer
    return torch.where(in_answer > 0, scores - penalty, scores)


def _repetition_penalty(p: ResolvedParameters) -> float:
    return p.repetition_penalty if p.repeat_last_n else 1.0


def _repeated(scores: Tensor, rows: Sequence[ScoreSettings], read: Callable[[ResolvedParameters], float]) -> Tensor:
    penalty = _column(rows, read, scores)
    return torch.where(scores < 0, scores * penalty, scores / penalty)


def _column(rows: Sequence[ScoreSettings], read: Callable[[ResolvedParameters], float], like: Tensor) -> Tensor:
    return torch.tensor([[read(row.parameters)] for row in rows], dtype=like.dtype, device=like.device)
