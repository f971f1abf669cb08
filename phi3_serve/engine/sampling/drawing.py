"""Random draws of the next tokens from warped scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreSettings
from phi3_serve.engine.sampling.warpers import warp
from phi3_serve.errors import InvalidRequest


def draw(scores: Tensor, rows: Sequence[ScoreSettings]) -> list[int]:
    """One token for each row, drawn from the distribution of its warped ``scores`` [rows, vocabulary].

    For a row with a small top_k, only its top_k candidates are warped instead of the whole vocabulary. The
    distribution is the same.
    """
    tokens = [0] * len(rows)
    reducible = [index for index, row in enumerate(rows) if _is_reducible(row, scores.shape[1])]
    if reducible:
        settings = [rows[index] for index in reducible]
        of_rows = scores if len(reducible) == len(rows) else scores[reducible]
        values, ids, has_ties = _candidates(of_rows, settings)
        drawn = ids.gather(1, _draw_index(warp(values, settings))).flatten().tolist()
        for index, token, tied in zip(reducible, drawn, has_ties, strict=True):
            tokens[index] = token
            if tied:  # transformers keeps all tokens with the score of the k-th one
                tokens[index] = int(_draw_index(warp(scores[index : index + 1].clone(), [rows[index]])))
    others = sorted(set(range(len(rows))) - set(reducible))
    if others:
        drawn = _draw_index(warp(scores[others], [rows[index] for index in others])).flatten().tolist()
        for index, token in zip(others, drawn, strict=True):
            tokens[index] = token
    return tokens


def probabilities(scores: Tensor, rows: Sequence[ScoreSettings]) -> Tensor:
    """The distribution that a token is drawn from, [rows, vocabulary]. May change ``scores``.

    Raises:
        InvalidRequest: a probability is not a number.
    """
    probs = warp(scores, rows).softmax(-1)
    _check(probs)
    return probs


def scores_are_invalid() -> InvalidRequest:
    """The parameters make a score infinite or not a number."""
    return InvalidRequest(
        "These parameters make the scores infinite or not a number. Send less extreme values of `sequence_bias`, "
        "`exponential_decay_length_penalty`, `repetition_penalty`, `encoder_repetition_penalty` or `guidance_scale`, "
        "or send `remove_invalid_values` as true."
    )


def _is_reducible(row: ScoreSettings, vocab_size: int) -> bool:
    top_k = row.parameters.top_k
    return 0 < max(top_k, row.min_tokens_to_keep) < vocab_size // 4 and top_k > 0 and row.parameters.top_h is None


def _candidates(scores: Tensor, rows: Sequence[ScoreSettings]) -> tuple[Tensor, Tensor, list[bool]]:
    """The top_k candidates of each row, in the order of the vocabulary.

    Returns:
        their scores and their ids, [rows, largest top_k + 1], and for each row whether more tokens have the score of
        its last candidate.
    """
    limits = [max(row.parameters.top_k, row.min_tokens_to_keep) for row in rows]
    values, ids = scores.topk(max(limits) + 1)
    limit = torch.tensor(limits, device=scores.device)[:, None]
    last = values.gather(1, limit - 1)
    has_ties = ((values.gather(1, limit) == last) & (last > RULED_OUT)).flatten().tolist()
    values = values.masked_fill(torch.arange(values.shape[1], device=scores.device) >= limit, RULED_OUT)
    ids, order = ids.sort(dim=-1)
    return values.gather(1, order), ids, has_ties


def _draw_index(scores: Tensor) -> Tensor:
    """A random column for each row, [rows, 1], from one random number and the cumulative distribution."""
    probs = scores.softmax(-1)
    _check(probs)
    cumulative = probs.double().cumsum(-1)
    point = torch.rand(len(probs), 1, dtype=torch.float64, device=probs.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, point, right=True).clamp_(max=probs.shape[1] - 1)


def _check(probs: Tensor) -> None:
    if not bool(torch.isfinite(probs.sum())):
        raise scores_are_invalid()
