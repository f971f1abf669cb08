"""Greedy search and sampling: each sequence goes on independently of the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import FinishReason, GeneratedSequence, TokenLogprobs
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.drawing import probabilities
from phi3_serve.engine.sampling.logprobs import token_logprobs
from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreRow
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.base import LogitIndices, RoundScores, Strategy
from phi3_serve.engine.sampling.warpers import warp


class _Chosen(NamedTuple):
    """A chosen token, and what was requested of it."""

    token: int
    score: float | None = None
    logprobs: TokenLogprobs | None = None


@dataclass(slots=True)
class _Answer:
    """What one sequence of the answer has collected."""

    scores: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finished: GeneratedSequence | None = None


class IndependentSequences(Strategy):
    """Sequences that are greedy or drawn, each on its own. With a draft, one sequence may advance several tokens."""

    def __init__(self, request: EngineRequest, stopping: StoppingCriteria, long_factors_from: int | None) -> None:
        super().__init__(request, stopping, long_factors_from)
        self._answers = [_Answer() for _ in range(self.num_rows)]
        self._answer_of_row = list(range(self.num_rows))  # finished rows are removed
        if request.parameters.is_greedy:
            self.choice = "most_likely"
        elif self._generator is None:
            self.choice = "drawn_in_batch"

    @property
    def num_rows(self) -> int:
        """One row for each requested sequence."""
        return self.request.parameters.num_return_sequences

    def score_rows(self, round_number: int, logits: LogitIndices) -> list[ScoreRow]:
        """One row for each sequence; with a draft, one for each drafted token and one for the token after them."""
        draft = self.rows[0].draft
        if not draft:
            return [self._score_row(index, logits) for index in range(len(self.rows))]
        rows = [self._score_row(0, logits)]
        for number, token in enumerate(draft, 1):
            history = rows[-1].history[:]
            history.append(token)
            mask = None if self.constrained is None else self.constrained.mask(0, number)
            rows.append(ScoreRow(self.settings, history, rows[-1].logit_index + 1, mask=mask))
        return rows

    def check_scores(self, best: Sequence[float]) -> None:
        """See the base class. The rows behind the first one of a draft may not be needed."""
        if RULED_OUT in best[:1] or (not self.rows[0].draft and RULED_OUT in best):
            raise self._nothing_is_left()

    def advance(self, scores: RoundScores, blocks: BlockManager) -> Sequence[int]:
        """Append one token to each sequence, or to the only one all drafted tokens that were chosen and one more."""
        tokens = self._draw_seeded(scores) if scores.tokens is None else scores.tokens
        chosen = self._with_details(tokens, scores)
        if self.rows[0].draft:
            return self._accept_draft(chosen, blocks)
        finished = [index for index, one in enumerate(chosen) if self._append(index, one) is not None]
        for index in reversed(finished):
            self._remove(index, blocks)
        self.is_done = not self.rows
        return tokens[:1]

    def latest_logprobs(self, count: int) -> tuple[TokenLogprobs, ...] | None:
        """See the base class."""
        logprobs = self._answers[0].logprobs
        return None if self.request.parameters.top_logprobs is None else tuple(logprobs[len(logprobs) - count :])

    def result(self) -> tuple[GeneratedSequence, ...]:
        """The sequences in the order in which they were started."""
        return tuple(answer.finished for answer in self._answers if answer.finished is not None)

    def _draw_seeded(self, scores: RoundScores) -> list[int]:
        """Draw as ``torch.multinomial`` does within ``transformers.generate`` after ``torch.manual_seed``.

        It divides the probabilities by exponential noise and takes the largest quotient. The noise is drawn for all
        sequences, even for finished ones.
        """
        probs = probabilities(scores.scores.clone(), [row.settings for row in scores.rows]).cpu()
        draft = self.rows[0].draft
        tokens: list[int] = []
        for index in range(len(draft) + 1):
            noise = torch.empty(self.num_rows, probs.shape[1]).exponential_(1, generator=self._generator)
            if not draft:
                return (probs / noise[self._answer_of_row]).argmax(-1).tolist()
            tokens.append(int((probs[index] / noise[0]).argmax()))
            if index < len(draft) and tokens[-1] != draft[index]:
                break
        return tokens

    def _with_details(self, tokens: Sequence[int], scores: RoundScores) -> list[_Chosen]:
        num_logprobs = self.request.parameters.top_logprobs
        of_scores = self._token_scores(tokens, scores) if self.request.parameters.output_scores else None
        of_logprobs = None
        if num_logprobs is not None:
            of_rows = scores.logits[[row.logit_index for row in scores.rows[: len(tokens)]]]
            of_logprobs = token_logprobs(of_rows, tokens, num_logprobs)
        return [
            _Chosen(
                token,
                None if of_scores is None else of_scores[index],
                None if of_logprobs is None else of_logprobs[index],
            )
            for index, token in enumerate(tokens)
        ]

    def _token_scores(self, tokens: Sequence[int], scores: RoundScores) -> list[float]:
        """The log-probability of each token after all processors and warpers."""
        warped = scores.scores[: len(tokens)]
        if self.request.parameters.do_sample:
            warped = warp(warped.clone(), [row.settings for row in scores.rows[: len(tokens)]])
        picked = warped.log_softmax(-1).gather(1, torch.tensor(tokens, device=warped.device)[:, None])
        return picked.flatten().tolist()

    def _accept_draft(self, chosen: Sequence[_Chosen], blocks: BlockManager) -> list[int]:
        """Append the chosen tokens up to the first one that differs from the draft."""
        draft, self.rows[0].draft = self.rows[0].draft, ()
        new: list[int] = []
        for index, one in enumerate(chosen):
            new.append(one.token)
            if self._append(0, one) is not None:
                self._remove(0, blocks)
                self.is_done = True
                break
            if index < len(draft) and one.token != draft[index]:
                break
        return new

    def _append(self, index: int, chosen: _Chosen) -> FinishReason | None:
        row, answer = self.rows[index], self._answers[self._answer_of_row[index]]
        reason = self._stopping.finish_reason(row.tokens, chosen.token)
        row.append(chosen.token)
        if self.constrained is not None:
            if not self.constrained.advance(index, chosen.token):
                raise self._nothing_is_left()
            if reason == "length" and self.constrained.is_finished(index):
                reason = "stop"
        if self.negative_prompt_rows:
            self.negative_prompt_rows[index].append(chosen.token)
        if chosen.score is not None:
            answer.scores.append(chosen.score)
        if chosen.logprobs is not None:
            answer.logprobs.append(chosen.logprobs)
        if reason is not None:
            parameters = self.request.parameters
            answer.finished = GeneratedSequence(
                row.new_token_ids,
                reason,
                tuple(answer.scores) if parameters.output_scores else None,
                tuple(answer.logprobs) if parameters.top_logprobs is not None else None,
            )
        return reason

    def _remove(self, index: int, blocks: BlockManager) -> None:
        del self._answer_of_row[index]
        if self.constrained is not None:
            self.constrained.remove(index)
        for sequences in self.sequences_by_prompt:
            if sequences:
                sequences.pop(index).release(blocks)
