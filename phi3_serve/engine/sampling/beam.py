"""Bookkeeping of beam search: which candidates live on, which are finished, when to stop.

Plain Python over (score, token, beam) candidates, no tensors. Two kinds, which differ in when they stop: plain
beam search as of transformers 5.23, and the groups of ``BeamSearchScorer`` and ``BeamHypotheses`` in 4.55, the last
version with group beam search in its core. The algorithm of the groups: Vijayakumar et al. 2016, Diverse Beam
Search, https://arxiv.org/abs/1610.02424.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

EarlyStopping = bool | Literal["never"]
NO_SCORE = -1e9  # of beams that are not alive, below every sum of log-probabilities that means something
LOWEST_SCORE = NO_SCORE - 64  # in float32, in which transformers computes, still the same


@dataclass(frozen=True, slots=True)
class Candidate:
    """A beam of a group and a token that may follow it."""

    score: float  # summed log-probability with the token
    token: int
    beam: int  # index within the group


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished beam; of a group, without its end-of-sequence token."""

    score: float  # summed log-probability divided by length ** length_penalty
    token_ids: tuple[int, ...]  # prompt and answer
    path: tuple[
        float, ...
    ]  # for each token of the answer what the caller keeps of it: its score, or where it was scored


class BestHypotheses:
    """The best finished beams of one group, at most ``size``."""

    def __init__(self, size: int, *, length_penalty: float, early_stopping: EarlyStopping, max_new_tokens: int) -> None:
        self.size = size
        self.found: list[Hypothesis] = []
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_new_tokens = max_new_tokens
        self._worst_score = 1e9

    def add(
        self, token_ids: tuple[int, ...], path: tuple[float, ...], sum_logprobs: float, num_new_tokens: int
    ) -> None:
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
        paths: Sequence[tuple[float, ...]],
        num_new_tokens: int,
    ) -> list[Candidate]:
        """The candidates that live on; those with an end-of-sequence token finish their beam.

        ``ranked`` are the best candidates, best first; ``beams`` the token ids of the group's beams so far and
        ``paths`` what goes with each of their tokens and with the candidate's; ``num_new_tokens`` counts that, too.
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


class BeamSearch:
    """Plain beam search, as transformers 5.23 has it (generation/utils.py, _beam_search)."""

    def __init__(
        self, num_beams: int, *, length_penalty: float, early_stopping: EarlyStopping, max_new_tokens: int
    ) -> None:
        self.finished: list[Hypothesis] = []  # best first, at most num_beams
        self.is_done = False
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._max_new_tokens = max_new_tokens
        self._can_improve = True

    def advance(
        self,
        candidates: Sequence[Candidate],
        is_end: Sequence[bool],
        hypothesis: Callable[[float, Candidate], Hypothesis],
        num_new_tokens: int,
    ) -> list[Candidate]:
        """The beams of the next step, best first; candidates that end are kept if they are among the best.

        They also live on, with next to no score, where all others have even less: sampling can leave nobody else.

        ``candidates`` are the best continuations, best first, or in the order they were drawn in; ``hypothesis``
        makes one of a score and the candidate that ended it; ``num_new_tokens`` counts the candidate's token.
        """
        if self._can_improve and not (self._early_stopping is True and self._is_full):
            for candidate, ends in list(zip(candidates, is_end, strict=True))[: self._num_beams]:
                score = candidate.score / num_new_tokens**self._length_penalty
                if ends and score >= LOWEST_SCORE:
                    self.finished.append(hypothesis(score, candidate))
            self.finished = sorted(self.finished, key=lambda found: found.score, reverse=True)[: self._num_beams]
        going_on = [
            replace(candidate, score=candidate.score + NO_SCORE) if ends else candidate
            for candidate, ends in zip(candidates, is_end, strict=True)
        ]
        living = sorted(going_on, key=lambda candidate: candidate.score, reverse=True)[: self._num_beams]
        self._can_improve = self._can_improve and self._may_improve(living[0].score, num_new_tokens)
        is_stopped_early = self._early_stopping is True and self._is_full
        self.is_done = not self._can_improve or is_stopped_early or all(is_end)
        return living

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._num_beams

    def _may_improve(self, best_sum_logprobs: float, num_new_tokens: int) -> bool:
        to_the_end = self._early_stopping == "never" and self._length_penalty > 0.0
        length = self._max_new_tokens if to_the_end else num_new_tokens
        attainable: float = best_sum_logprobs / length**self._length_penalty
        return attainable > (self.finished[-1].score if self._is_full else NO_SCORE)
