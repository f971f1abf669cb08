"""Bookkeeping of beam search: which candidates go on, which hypotheses are finished, when to stop.

Plain Python over (score, token, beam) candidates, no tensors. There are two kinds, which stop by different rules:
plain beam search is that of transformers 5.23; a beam group is that of ``BeamSearchScorer`` and ``BeamHypotheses`` in
4.55, the last version with group beam search in its core. The algorithm of beam groups: Vijayakumar et al. 2016,
Diverse Beam Search, https://arxiv.org/abs/1610.02424.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from phi3_serve.parameters import EarlyStopping

NO_SCORE = -1e9  # of a beam that is not running; lower than any real sum of log-probabilities
LOWEST_SCORE = NO_SCORE - 64  # transformers computes in float32, where this equals NO_SCORE


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running beam and a token that may follow it."""

    score: float  # summed log-probability with the token
    token: int
    beam: int  # index within the group


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished beam. In a beam group it has no end-of-sequence token."""

    score: float  # summed log-probability divided by length ** length_penalty
    token_ids: tuple[int, ...]
    path: tuple[float, ...]  # what the caller keeps for each token: its score, or where it was scored


@dataclass(frozen=True, slots=True)
class _LengthRule:
    """How a beam's score depends on its length."""

    length_penalty: float
    early_stopping: EarlyStopping
    max_new_tokens: int

    def score(self, sum_logprobs: float, num_new_tokens: int) -> float:
        """The score of a beam of this length."""
        score: float = sum_logprobs / num_new_tokens**self.length_penalty
        return score

    def attainable_score(self, sum_logprobs: float, num_new_tokens: int) -> float:
        """The score that a running beam is expected to reach at most.

        With early_stopping "never" that is the score at the most favourable length, otherwise at the current length.
        """
        favours_length = self.early_stopping == "never" and self.length_penalty > 0.0
        return self.score(sum_logprobs, self.max_new_tokens if favours_length else num_new_tokens)


class BestHypotheses:
    """The best finished beams of one beam group, at most ``size``."""

    def __init__(self, size: int, *, length_penalty: float, early_stopping: EarlyStopping, max_new_tokens: int) -> None:
        self.size = size
        self.found: list[Hypothesis] = []
        self._rule = _LengthRule(length_penalty, early_stopping, max_new_tokens)
        self._worst_score = 1e9

    def add(
        self, token_ids: tuple[int, ...], path: tuple[float, ...], sum_logprobs: float, num_new_tokens: int
    ) -> None:
        """Keep a finished beam if it is among the best."""
        score = self._rule.score(sum_logprobs, num_new_tokens)
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
        """Whether no running beam is expected to become better; the best one has ``best_sum_logprobs``."""
        if len(self.found) < self.size:
            return False
        if self._rule.early_stopping is True:
            return True
        return self._worst_score >= self._rule.attainable_score(best_sum_logprobs, num_new_tokens)


class BeamGroup:
    """One group of beams and its finished hypotheses."""

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
        """The candidates that go on. A candidate with an end-of-sequence token finishes its beam.

        Args:
            ranked: the best candidates, best first.
            beams: the token ids of the group's beams so far.
            paths: for each beam what the caller keeps for its tokens, with one entry for the end-of-sequence token.
            num_new_tokens: tokens of the answer, the candidate's token included.
        """
        size = self.best.size
        running: list[Candidate] = []
        for rank, candidate in enumerate(ranked):
            if candidate.token not in self._eos_token_ids:
                running.append(candidate)
            elif rank < size:  # transformers ignores an end that is not among the best
                self.best.add(beams[candidate.beam], paths[candidate.beam], candidate.score, num_new_tokens)
            if len(running) == size:
                break
        self.is_done = self.is_done or self.best.is_complete(max(c.score for c in ranked), num_new_tokens)
        return running


def best_of(groups: Sequence[BeamGroup], count: int) -> list[Hypothesis]:
    """The ``count`` best hypotheses of all groups, best first. Of two with the same score the later one is first."""
    found = [hypothesis for group in groups for hypothesis in group.best.found]
    return sorted(found, key=lambda hypothesis: hypothesis.score)[::-1][:count]


class BeamSearchState:
    """The finished hypotheses of a plain beam search, as in transformers 5.23 (generation/utils.py, _beam_search)."""

    def __init__(
        self, num_beams: int, *, length_penalty: float, early_stopping: EarlyStopping, max_new_tokens: int
    ) -> None:
        self.finished: list[Hypothesis] = []  # best first, at most num_beams
        self.is_done = False
        self._num_beams = num_beams
        self._rule = _LengthRule(length_penalty, early_stopping, max_new_tokens)
        self._can_improve = True

    def advance(
        self,
        candidates: Sequence[Candidate],
        is_end: Sequence[bool],
        hypothesis: Callable[[float, Candidate], Hypothesis],
        num_new_tokens: int,
    ) -> list[Candidate]:
        """The candidates that go on, best first. Candidates that end become hypotheses if they are among the best.

        A candidate that ends also goes on, with NO_SCORE added, if the others score even lower. With sampling there
        may be no others.

        Args:
            candidates: the best continuations, best first, or with sampling in the order in which they were drawn.
            is_end: for each candidate whether its sequence ends.
            hypothesis: makes a hypothesis from its score and the candidate that ended it.
            num_new_tokens: tokens of the answer, the candidate's token included.
        """
        if self._can_improve and not self._is_stopped_early:
            for candidate, ends in list(zip(candidates, is_end, strict=True))[: self._num_beams]:
                score = self._rule.score(candidate.score, num_new_tokens)
                if ends and score >= LOWEST_SCORE:
                    self.finished.append(hypothesis(score, candidate))
            self.finished = sorted(self.finished, key=lambda found: found.score, reverse=True)[: self._num_beams]
        going_on = [
            replace(candidate, score=candidate.score + NO_SCORE) if ends else candidate
            for candidate, ends in zip(candidates, is_end, strict=True)
        ]
        running = sorted(going_on, key=lambda candidate: candidate.score, reverse=True)[: self._num_beams]
        self._can_improve = self._can_improve and self._may_improve(running[0].score, num_new_tokens)
        self.is_done = not self._can_improve or self._is_stopped_early or all(is_end)
        return running

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self._num_beams

    @property
    def _is_stopped_early(self) -> bool:
        return self._rule.early_stopping is True and self._is_full

    def _may_improve(self, best_sum_logprobs: float, num_new_tokens: int) -> bool:
        worst = self.finished[-1].score if self._is_full else NO_SCORE
        return self._rule.attainable_score(best_sum_logprobs, num_new_tokens) > worst
