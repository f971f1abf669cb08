"""Logits warpers, and drawing from what they leave.

The warpers are the classes of the same name in transformers 5.23 (generation/logits_process.py), each over all
rows that ask for it. Where a row asks for top_k and for nothing before it, the others work on its k candidates
instead of the whole vocabulary; the result is the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.sampling.processors import NEVER, Settings
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters

TOP_H_CANDIDATES = 100  # transformers looks no further


def warp(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """The scores [rows, candidates] of what may be drawn, -inf for the rest. ``scores`` may be changed."""
    for is_asked, apply in _WARPERS:
        at = [number for number, row in enumerate(rows) if is_asked(row)]
        if len(at) == len(rows):
            scores = apply(scores, rows)
        elif at:
            scores[at] = apply(scores[at], [rows[number] for number in at])
    return scores


def draw(scores: Tensor, rows: Sequence[Settings]) -> list[int]:
    """For each row a token, drawn from the distribution of its warped ``scores`` [rows, vocabulary]."""
    tokens = [0] * len(rows)
    reducible = [number for number, row in enumerate(rows) if _is_reducible(row, scores.shape[1])]
    if reducible:
        settings = [rows[number] for number in reducible]
        of_rows = scores if len(reducible) == len(rows) else scores[reducible]
        values, ids, has_ties = _candidates(of_rows, settings)
        drawn = ids.gather(1, _draw_index(warp(values, settings))).flatten().tolist()
        for number, token, tied in zip(reducible, drawn, has_ties, strict=True):
            tokens[number] = token
            if tied:  # transformers keeps all tokens that score as the k-th does
                tokens[number] = int(_draw_index(warp(scores[number : number + 1].clone(), [rows[number]])))
    whole = [number for number in range(len(rows)) if number not in set(reducible)]
    if whole:
        drawn = _draw_index(warp(scores[whole], [rows[number] for number in whole])).flatten().tolist()
        for number, token in zip(whole, drawn, strict=True):
            tokens[number] = token
    return tokens


def probabilities(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """The distribution that a token is drawn from, [rows, vocabulary]."""
    probs = warp(scores, rows).softmax(-1)
    _check(probs)
    return probs


def _is_reducible(row: Settings, vocab_size: int) -> bool:
    top_k = row.parameters.top_k or 0
    return 0 < max(top_k, row.min_tokens_to_keep) < vocab_size // 4 and top_k > 0 and row.parameters.top_h is None


def _candidates(scores: Tensor, rows: Sequence[Settings]) -> tuple[Tensor, Tensor, list[bool]]:
    """The top_k candidates of each row in the vocabulary's order: scores, ids, and whether a tie makes them more."""
    limits = [max(row.parameters.top_k or 0, row.min_tokens_to_keep) for row in rows]
    values, ids = scores.topk(max(limits) + 1)
    limit = torch.tensor(limits, device=scores.device)[:, None]
    has_ties = (values.gather(1, limit) == values.gather(1, limit - 1)).flatten().tolist()
    values = values.masked_fill(torch.arange(values.shape[1], device=scores.device) >= limit, NEVER)
    ids, order = ids.sort(dim=-1)
    return values.gather(1, order), ids, has_ties


def _draw_index(scores: Tensor) -> Tensor:
    """An index for each row, [rows, 1], by one random number and the distribution function."""
    probs = scores.softmax(-1)
    _check(probs)
    distribution = probs.double().cumsum(-1)
    point = torch.rand(len(probs), 1, dtype=torch.float64, device=probs.device) * distribution[:, -1:]
    return torch.searchsorted(distribution, point, right=True).clamp_(max=probs.shape[1] - 1)


def _check(probs: Tensor) -> None:
    if not bool(torch.isfinite(probs.sum())):
        raise InvalidRequest("These parameters drive the scores beyond all numbers, to inf or nan.")


def _temperature(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    return scores / _column(rows, lambda p: p.temperature, scores)


def _top_h(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Top-H: https://arxiv.org/abs/2509.02510"""
    top, ids = scores.topk(min(TOP_H_CANDIDATES, scores.shape[1]))
    categorical = torch.distributions.Categorical(logits=top, validate_args=False)
    threshold = categorical.entropy()[:, None] * _column(rows, lambda p: p.top_h, scores)
    is_kept = torch.cumsum(-categorical.probs * categorical.probs.log(), dim=-1) <= threshold
    is_kept[:, 0] = True
    return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter_(1, ids, is_kept), NEVER)


def _top_k(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    limits = [min(max(row.parameters.top_k or 0, row.min_tokens_to_keep), scores.shape[1]) for row in rows]
    return scores.masked_fill(scores < _nth_largest(scores, limits), NEVER)


def _top_p(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Nucleus: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751

    Of equal scores on the edge some go, and transformers leaves it to ``torch.sort`` which, an order of no kind that
    takes it two milliseconds. It is asked where all that is left is equal, as several forced tokens are; elsewhere,
    where equal scores come from bfloat16, those with the lowest ids go.
    """
    ascending = _ascending(scores)
    is_beyond = ascending.softmax(-1).cumsum(-1) <= _column(rows, lambda p: 1 - (p.top_p or 0.0), scores)
    num_removed = (is_beyond & ~_last_columns(rows, scores)).sum(-1, keepdim=True)
    lowest_kept = ascending.gather(1, num_removed)
    is_removed = scores < lowest_kept
    num_tied = num_removed - is_removed.sum(-1, keepdim=True)
    if bool(num_tied.any()):
        is_equal = scores == lowest_kept
        is_removed |= is_equal & (is_equal.cumsum(-1) <= num_tied)
        is_at_top = (num_tied > 0) & (lowest_kept == ascending[:, -1:])
        for number in is_at_top.flatten().nonzero().flatten().tolist():
            order = scores[number : number + 1].sort(dim=-1).indices[0]
            is_removed[number, order] = torch.arange(len(order), device=order.device) < num_removed[number]
    return scores.masked_fill(is_removed, NEVER)


def _ascending(scores: Tensor) -> Tensor:
    """``scores`` sorted; numpy takes 50 us for 32,000 where torch takes 1,800, which sorts their places, too."""
    return torch.from_numpy(np.sort(scores.numpy())) if scores.device.type == "cpu" else scores.sort(-1).values


def _min_p(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Min-p: https://arxiv.org/abs/2407.01082"""
    probs = scores.softmax(-1)
    is_removed = probs < _column(rows, lambda p: p.min_p, scores) * probs.amax(-1, keepdim=True)
    return scores.masked_fill(is_removed & ~_among_largest(probs, rows), NEVER)


def _typical(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Typical decoding: Meister et al. 2022, https://arxiv.org/abs/2202.00666"""
    logprobs = scores.log_softmax(-1)
    entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
    shifted, ids = (-logprobs - entropy).abs().sort(dim=-1)
    cumulative = scores.gather(-1, ids).softmax(-1).cumsum(-1)
    mass = _column(rows, lambda p: p.typical_p, scores)
    last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=scores.shape[1] - 1)
    is_removed = shifted > shifted.gather(1, last)
    is_removed &= ~_last_columns(rows, scores).flip(-1)
    return scores.masked_fill(is_removed.scatter(1, ids, is_removed), NEVER)


def _epsilon(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Epsilon sampling: Hewitt et al. 2022, https://arxiv.org/abs/2210.15191"""
    return _cut_below(scores, _column(rows, lambda p: p.epsilon_cutoff, scores), rows)


def _eta(scores: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Eta sampling: Hewitt et al. 2022, https://arxiv.org/abs/2210.15191"""
    epsilon = _column(rows, lambda p: p.eta_cutoff, scores)
    entropy = torch.distributions.Categorical(logits=scores, validate_args=False).entropy()[:, None]
    return _cut_below(scores, torch.min(epsilon, epsilon.sqrt() * torch.exp(-entropy)), rows)


def _cut_below(scores: Tensor, probability: Tensor, rows: Sequence[Settings]) -> Tensor:
    limits = [min(row.min_tokens_to_keep, scores.shape[1]) for row in rows]
    is_removed = (scores.softmax(-1) < probability) & (scores < _nth_largest(scores, limits))
    return scores.masked_fill(is_removed, NEVER)


def renormalize(scores: Tensor) -> Tensor:
    """Log-probabilities."""
    return scores.log_softmax(-1)


_Read = Callable[[GenerationParameters], Any]


def _below_one(read: _Read) -> Callable[[Settings], bool]:
    return lambda s: read(s.parameters) is not None and 0.0 < read(s.parameters) < 1.0


_WARPERS: tuple[tuple[Callable[[Settings], object], Callable[[Tensor, Sequence[Settings]], Tensor]], ...] = (
    (lambda s: s.parameters.temperature not in (None, 1.0), _temperature),
    (lambda s: s.parameters.top_h is not None, _top_h),
    (lambda s: s.parameters.top_k, _top_k),
    (lambda s: s.parameters.top_p is not None and s.parameters.top_p < 1.0, _top_p),
    (lambda s: s.parameters.min_p is not None, _min_p),
    (lambda s: s.parameters.typical_p is not None and s.parameters.typical_p < 1.0, _typical),
    (_below_one(lambda p: p.epsilon_cutoff), _epsilon),
    (_below_one(lambda p: p.eta_cutoff), _eta),
)


def _column(rows: Sequence[Settings], read: _Read, like: Tensor) -> Tensor:
    """One parameter of each row, [rows, 1]."""
    return torch.tensor([[read(row.parameters)] for row in rows], dtype=like.dtype, device=like.device)


def _nth_largest(scores: Tensor, limits: list[int]) -> Tensor:
    """The n-th largest score of each row, [rows, 1]."""
    return scores.topk(max(limits)).values.gather(1, torch.tensor(limits, device=scores.device)[:, None] - 1)


def _last_columns(rows: Sequence[Settings], scores: Tensor) -> Tensor:
    """The last min_tokens_to_keep columns, bool [rows, columns]."""
    width = scores.shape[1]
    first = torch.tensor([[width - row.min_tokens_to_keep] for row in rows], device=scores.device)
    return torch.arange(width, device=scores.device) >= first


def _among_largest(probs: Tensor, rows: Sequence[Settings]) -> Tensor:
    """Which are among the min_tokens_to_keep largest, bool [rows, columns]."""
    limits = [min(row.min_tokens_to_keep, probs.shape[1]) for row in rows]
    ids = probs.topk(max(limits)).indices
    ranks = torch.arange(ids.shape[1], device=probs.device) < torch.tensor(limits, device=probs.device)[:, None]
    return torch.zeros_like(probs, dtype=torch.bool).scatter_(1, ids, ranks)
