"""Bookkeeping of beam search with groups: which candidates live on, which are finished, when to stop.

Plain Python over (score, token, beam) candidates, no tensors. The meaning is that of ``BeamSearchScorer`` and
``BeamHypotheses`` in transformers 4.55, the last version with group beam search in its core. The algorithm:
Vijayakumar et al. 2016, Diverse Beam Search, https://arxiv.org/abs/1610.02424.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beam of a group and a token that may follow it."""

    score: float  # summed log-probability with the token
    token: int
    beam: int  # index within the group


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished beam, without its end-of-sequence token."""

    score: float  # summed log-probability divided by length ** length_penalty
    token_ids: tuple[int, ...]  # prompt and answer
    path: tuple[int, ...]  # the row of the batch that each token of the answer was scored in


class BestHypotheses:
    """The best finished beams of one group, at most ``size``."""

    def __init__(self, size: int, *, length_penalty: float, early_stopping: EarlyStopping, max_new_tokens: int) -> None:
        self.size = size
        self.found: list[Hypothesis] = []
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_new_tokens = max_new_tokens
        self._worst_score = 1e9

    def add(self, token_ids: tuple[int, ...], path: tuple[int, ...], sum_logprobs: float, num_new_tokens: int) -> None:
        """Keep a finished beam, if it is among the best."""
        score = sum_logprobs / num_new_tokens**self._length_penalty
        if len(self.found) >= self.size and score <= self._worst_score:
            return
        self.found.append(Hypothesis(score, token_ids, path))
        if len(self.found) <= self.size:
            self._worst_score = min(score, self._worst_score)
            return
        ranked = sorted((hypothesis.score, index) for index, hypothesis in enumerate(self.found))
        del self.found[ranked[0][1]]
        self._worst_score = ranked[1][0]

    def is_complete(self, best_sum_logprobs: float, num_new_tokens: int) -> bool:
        """Whether no living beam, the best of which has ``best_sum_logprobs``, is expected to do better."""
        if len(self.found) < self.size:
            return False
        if self._early_stopping is True:
            return True
        # "never" assumes the length that helps most; false takes the present one
        to_the_end = self._early_stopping == "never" and self._length_penalty > 0.0
        length = self._max_new_tokens if to_the_end else num_new_tokens
        attainable: float = best_sum_logprobs / length**self._length_penalty
        return self._worst_score >= attainable


class BeamGroup:
    """The beams of one group, and its finished ones."""

    def __init__(self, best: BestHypotheses, eos_token_ids: frozenset[int]) -> None:
        self.best = best
        self.is_done = False
        self._eos_token_ids = eos_token_ids

    def advance(
        self,
        ranked: Sequence[Candidate],
        beams: Sequence[tuple[int, ...]],
        paths: Sequence[tuple[int, ...]],
        num_new_tokens: int,
    ) -> list[Candidate]:
        """The candidates that live on; those with an end-of-sequence token finish their beam.

        ``ranked`` are the best candidates, best first; ``beams`` the token ids of the group's beams so far and
        ``paths`` their rows; ``num_new_tokens`` counts the candidate's token.
        """
        size = self.best.size
        living: list[Candidate] = []
        for rank, candidate in enumerate(ranked):
            if candidate.token not in self._eos_token_ids:
                living.append(candidate)
            elif rank < size:  # an end that is not among the best is no end
                self.best.add(beams[candidate.beam], paths[candidate.beam], candidate.score, num_new_tokens)
            if len(living) == size:
                break
        self.is_done = self.is_done or self.best.is_complete(max(c.score for c in ranked), num_new_tokens)
        return living


def best_of(groups: Sequence[BeamGroup], count: int) -> list[Hypothesis]:
    """The ``count`` best hypotheses of all groups, best first; of equals the one found later."""
    found = [hypothesis for group in groups for hypothesis in group.best.found]
    return sorted(found, key=lambda hypothesis: hypothesis.score)[::-1][:count]
