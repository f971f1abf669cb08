"""An answer as token ids."""

from dataclasses import dataclass
from typing import Literal

from phi3_serve.pickled_by_name import pickled_by_name

FinishReason = Literal["stop", "length"]


@pickled_by_name
@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities under the model's own scores, before any parameter changes them."""

    chosen: float
    likeliest: tuple[tuple[int, float], ...]  # (token id, log-probability), the most likely first
    rank: int | None = None  # of the token among all tokens, from 1; only of a token of a prompt


@pickled_by_name
@dataclass(frozen=True, slots=True)
class GeneratedSequence:
    """One generated sequence: the new token ids and, for each of them, scores and log-probabilities if requested.

    ``scores`` are log-probabilities after all parameters are applied, ``logprobs`` those before.
    """

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    scores: tuple[float, ...] | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
