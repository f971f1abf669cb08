"""Diverse beam search, as in transformers 4.55: groups choose one after another, and each sees the earlier choices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.hypotheses import BeamGroup, BestHypotheses, Candidate, Hypothesis, best_of
from phi3_serve.engine.sampling.processors import RULED_OUT, ScoreRow
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.base import LogitIndices, RoundScores
from phi3_serve.engine.sampling.strategies.beams import BeamStrategy


class GroupBeamSearch(BeamStrategy):
    """Beams in groups of equal size. Each round is the choice of one group."""

    def __init__(self, request: EngineRequest, stopping: StoppingCriteria, long_factors_from: int | None) -> None:
        super().__init__(request, stopping, long_factors_from)
        self._groups = [self._new_group() for _ in range(self.num_rounds)]
        self._chosen: list[Candidate] = []  # in this step, by the groups so far; their beam is their row

    def _new_group(self) -> BeamGroup:
        best = BestHypotheses(
            self._group_size,
            length_penalty=self.request.parameters.length_penalty,
            early_stopping=self.request.parameters.early_stopping,
            max_new_tokens=self.request.max_length - len(self.request.prompt_ids),
        )
        return BeamGroup(best, frozenset(self.settings.eos_token_ids))

    @property
    def num_rounds(self) -> int:
        """One round for each group."""
        return self.request.parameters.num_beam_groups

    def score_rows(self, round_number: int, logits: LogitIndices) -> list[ScoreRow]:
        """The beams of group ``round_number``; none if the group is done."""
        if self._groups[round_number].is_done:
            return []
        tokens = [candidate.token for candidate in self._chosen]
        rows = [self._score_row(index, logits) for index in self._rows_of(round_number)]
        for row in rows:
            row.chosen_by_earlier_groups = tokens
        return rows

    def advance(self, scores: RoundScores, blocks: BlockManager) -> Sequence[int]:
        """Let group ``round_number`` choose. After the last group, all beams continue."""
        number = scores.round_number
        if self._groups[number].is_done:
            padding = Candidate(0.0, self.request.parameters.pad_token_id or 0, self._rows_of(number).start)
            self._chosen += [padding] * self._group_size
        else:
            self._chosen += self._choose(number, scores.scores)
        if number == self.num_rounds - 1:
            self._end_step(blocks)
        return ()

    def _choose(self, number: int, logprobs: Tensor) -> list[Candidate]:
        if self.request.parameters.renormalize_logits:
            logprobs = self._without_lost_beams(logprobs, logprobs.log_softmax(-1))
        mine = self._rows_of(number)
        in_group = slice(mine.start, mine.stop)
        ranked = self._best_candidates(logprobs, self._sums[in_group])
        if self.constrained is not None:  # a beam must not end where the constraint allows no end
            ranked = [c for c in ranked if c.score > RULED_OUT or c.token not in self.settings.eos_token_ids]
        token_scores = logprobs.log_softmax(-1) if self._outputs_scores else torch.zeros_like(logprobs)
        # transformers ends a finished beam with its first end-of-sequence token
        end_scores = token_scores[:, (self.settings.eos_token_ids or [0])[0]].tolist()
        paths = [(*self._scores[row], end_scores[row - mine.start]) for row in mine]
        beams = [self.rows[row].new_token_ids for row in mine]
        running = self._groups[number].advance(ranked, beams, paths, self._num_new_tokens)
        if self._is_exhausted(logprobs):
            self._groups[number].is_done = True
        self._scores[in_group] = [
            (*self._scores[mine.start + c.beam], float(token_scores[c.beam, c.token])) for c in running
        ]
        return [Candidate(c.score, c.token, mine.start + c.beam) for c in running]

    def _end_step(self, blocks: BlockManager) -> None:
        chosen, self._chosen = self._chosen, []
        all_stop = all(self._stops(candidate) for candidate in chosen)
        self._sums = [candidate.score for candidate in chosen]
        self._continue(chosen, blocks)
        if all_stop or all(group.is_done for group in self._groups):
            self._finish_running_beams()
            self._check_answers(sum(len(group.best.found) for group in self._groups))
            self.is_done = True

    def _stops(self, candidate: Candidate) -> bool:
        history = self.rows[candidate.beam].tokens
        is_full = len(history) + 1 >= self.request.max_length
        return is_full or self._stopping.is_out_of_time() or self._stopping.completes_string(history, candidate.token)

    def _finish_running_beams(self) -> None:
        for number, group in enumerate(self._groups):
            if group.is_done:
                continue
            for row in self._rows_of(number):
                if self.constrained is not None and self._sums[row] == RULED_OUT:
                    continue
                ids = self.rows[row].new_token_ids
                group.best.add(ids, self._scores[row], self._sums[row], len(ids))

    def result(self) -> tuple[GeneratedSequence, ...]:
        """The best hypotheses of all groups, with an end-of-sequence token where it fits."""
        best = best_of(self._groups, self.request.parameters.num_return_sequences)
        max_new_tokens = self.request.max_length - len(self.request.prompt_ids)
        longest = min(max(len(hypothesis.token_ids) for hypothesis in best) + 1, max_new_tokens)
        if self.constrained is not None:  # beams that the time has ended get no end-of-sequence token
            longest = min(longest, len(self.rows[0].new_token_ids))
        return tuple(self._sequence(hypothesis, longest) for hypothesis in best)

    def _sequence(self, hypothesis: Hypothesis, longest: int) -> GeneratedSequence:
        ends = self.settings.eos_token_ids
        is_ended = bool(ends) and len(hypothesis.token_ids) < longest
        ids = (*hypothesis.token_ids, ends[0]) if is_ended else hypothesis.token_ids
        scores = (*hypothesis.path, 0.0)[: len(ids)] if self._outputs_scores else None
        return GeneratedSequence(ids, "stop" if is_ended else "length", scores)

    @property
    def _outputs_scores(self) -> bool:
        return self.request.parameters.output_scores

    def _rows_of(self, group: int) -> range:
        return range(group * self._group_size, (group + 1) * self._group_size)
