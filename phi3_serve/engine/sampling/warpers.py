"""Logits warpers: they rule out the tokens that sampling may not draw.

The warpers are the classes of the same name in transformers 5.23 (generation/logits_process.py). Each works on all
rows that request it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreSettings
from phi3_serve.resolved_parameters import ResolvedParameters

TOP_H_CANDIDATES = 100  # as in transformers


def warp(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """``scores`` [rows, candidates] with -inf for all candidates that may not be drawn. May change its argument."""
    for warper in _WARPERS:
        indices = [index for index, row in enumerate(rows) if warper.is_requested(row.parameters)]
        if len(indices) == len(rows):
            scores = warper.apply(scores, rows)
        elif indices:
            scores[indices] = warper.apply(scores[indices], [rows[index] for index in indices])
    return scores


def requested(parameters: ResolvedParameters) -> frozenset[str]:
    """The parameters whose warpers change the scores."""
    return frozenset(warper.parameter for warper in _WARPERS if warper.is_requested(parameters))


def _temperature(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    return scores / _column(rows, lambda p: p.temperature, scores)


def _top_h(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """Top-H: https://arxiv.org/abs/2509.02510"""
    top, ids = scores.topk(min(TOP_H_CANDIDATES, scores.shape[1]))
    categorical = torch.distributions.Categorical(logits=top, validate_args=False)
    threshold = categorical.entropy()[:, None] * _column(rows, lambda p: p.top_h, scores)
    is_kept = torch.cumsum(-categorical.probs * categorical.probs.log(), dim=-1) <= threshold
    is_kept[:, 0] = True
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids, is_kept), RULED_OUT)


def _top_k(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    limits = [min(max(row.parameters.top_k, row.min_tokens_to_keep), scores.shape[1]) for row in rows]
    return scores.masked_fill(scores < _nth_largest(scores, limits), RULED_OUT)


def _top_p(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """Nucleus: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751

    At the edge of the nucleus some of several equal scores are removed. In transformers the order of ``torch.sort``
    decides which, but that order is not defined and the sort takes two milliseconds. It is used only if all remaining
    scores are equal, as with several forced tokens. Elsewhere, where bfloat16 makes scores equal, the tokens with the
    lowest ids are removed.
    """
    ascending = _ascending(scores)
    is_beyond = ascending.softmax(-1).cumsum(-1) <= _column(rows, lambda p: 1 - p.top_p, scores)
    num_removed = (is_beyond & ~_last_columns(rows, scores)).sum(-1, keepdim=True)
    lowest_kept = ascending.gather(1, num_removed)
    is_removed = scores < lowest_kept
    num_tied = num_removed - is_removed.sum(-1, keepdim=True)
    if bool(num_tied.any()):
        is_equal = scores == lowest_kept
        is_removed |= is_equal & (is_equal.cumsum(-1) <= num_tied)
        is_at_top = (num_tied > 0) & (lowest_kept == ascending[:, -1:])
        for index in is_at_top.flatten().nonzero().flatten().tolist():
            order = scores[index : index + 1].sort(dim=-1).indices[0]
            is_removed[index, order] = torch.arange(len(order), device=order.device) < num_removed[index]
    return scores.masked_fill(is_removed, RULED_OUT)


def _ascending(scores: Tensor) -> Tensor:
    """``scores`` sorted. For 32,000 scores numpy takes 50 us, torch 1,800 us because it also sorts their indices."""
    return torch.from_numpy(np.sort(scores.numpy())) if scores.device.type == "cpu" else scores.sort(-1).values


def _min_p(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """Min-p: https://arxiv.org/abs/2407.01082"""
    probs = scores.softmax(-1)
    is_removed = probs < _column(rows, lambda p: p.min_p, scores) * probs.amax(-1, keepdim=True)
    return scores.masked_fill(is_removed & ~_among_largest(probs, rows), RULED_OUT)


def _typical(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """Typical decoding: Meister et al. 2022, https://arxiv.org/abs/2202.00666"""
    logprobs = scores.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    shifted, ids = (-logprobs - entropy).abs().sort(dim=-1)
    cumulative = scores.gather(-1, ids).softmax(-1).cumsum(-1)
    mass = _column(rows, lambda p: p.typical_p, scores)
    last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=scores.shape[1] - 1)
    is_removed = shifted > shifted.gather(1, last)
    is_removed &= ~_last_columns(rows, scores).flip(-1)
    return scores.masked_fill(is_removed.scatter(1, ids, is_removed), RULED_OUT)


def _epsilon(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """Epsilon sampling: Hewitt et al. 2022, https://arxiv.org/abs/2210.15191"""
    return _cut_below(scores, _column(rows, lambda p: p.epsilon_cutoff, scores), rows)


def _eta(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """Eta sampling: Hewitt et al. 2022, https://arxiv.org/abs/2210.15191"""
    epsilon = _column(rows, lambda p: p.eta_cutoff, scores)
    entropy = torch.distributions.Categorical(logits=scores, validate_args=False).entropy()[:, None]
    return _cut_below(scores, torch.min(epsilon, epsilon.sqrt() * torch.exp(-entropy)), rows)


def _cut_below(scores: Tensor, probability: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    limits = [min(row.min_tokens_to_keep, scores.shape[1]) for row in rows]
    is_removed = (scores.softmax(-1) < probability) & (scores < _nth_largest(scores, limits))
    return scores.masked_fill(is_removed, RULED_OUT)


class _Warper(NamedTuple):
    parameter: str
    is_requested: Callable[[ResolvedParameters], bool]
    apply: Callable[[Tensor, Sequence[ScoreSettings]], Tensor]


# In the order of transformers.
_WARPERS: tuple[_Warper, ...] = (
    _Warper("temperature", lambda p: p.temperature != 1.0, _temperature),
    _Warper("top_h", lambda p: p.top_h is not None, _top_h),
    _Warper("top_k", lambda p: p.top_k > 0, _top_k),
    _Warper("top_p", lambda p: p.top_p < 1.0, _top_p),
    _Warper("min_p", lambda p: p.min_p > 0.0, _min_p),
    _Warper("typical_p", lambda p: p.typical_p < 1.0, _typical),
    _Warper("epsilon_cutoff", lambda p: 0.0 < p.epsilon_cutoff < 1.0, _epsilon),
    _Warper("eta_cutoff", lambda p: 0.0 < p.eta_cutoff < 1.0, _eta),
)


def _column(rows: Sequence[ScoreSettings], read: Callable[[ResolvedParameters], float | None], like: Tensor) -> Tensor:
    """One parameter of each row, [rows, 1]."""
    return torch.tensor([[read(row.parameters)] for row in rows], dtype=like.dtype, device=like.device)


def _nth_largest(scores: Tensor, limits: list[int]) -> Tensor:
    """The n-th largest score of each row, [rows, 1]."""
    return scores.topk(max(limits)).values.gather(1, torch.tensor(limits, device=scores.device)[:, None] - 1)


def _last_columns(rows: Sequence[ScoreSettings], scores: Tensor) -> Tensor:
    """True in the last min_tokens_to_keep columns, [rows, columns]."""
    width = scores.shape[1]
    first = torch.tensor([[width - row.min_tokens_to_keep] for row in rows], device=scores.device)
    return torch.arange(width, device=scores.device) >= first


def _among_largest(probs: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """True for the min_tokens_to_keep largest of each row, [rows, columns]."""
    limits = [min(row.min_tokens_to_keep, probs.shape[1]) for row in rows]
    ids = probs.topk(max(limits)).indices
    ranks = torch.arange(ids.shape[1], device=probs.device) < torch.tensor(limits, device=probs.device)[:, None]
    return torch.zeros_like(probs, dtype=torch.bool).scatter_(1, ids, ranks)
