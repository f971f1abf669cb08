"""Beam search and beam sampling, as in transformers 5.23 (generation/utils.py, _beam_search)."""

from collections.abc import Sequence

from torch import Tensor

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import FinishReason, GeneratedSequence
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.hypotheses import BeamSearchState, Candidate, Hypothesis
from phi3_serve.engine.sampling.processors import ScoreRow
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.base import LogitIndices, RoundScores
from phi3_serve.engine.sampling.strategies.beams import BeamStrategy
from phi3_serve.engine.sampling.warpers import warp


class BeamSearch(BeamStrategy):
    """Takes the best continuations of all beams, or draws them."""

    def __init__(self, request: EngineRequest, stopping: StoppingCriteria, long_factors_from: int | None) -> None:
        super().__init__(request, stopping, long_factors_from)
        self._search = BeamSearchState(
            self.num_rows,
            length_penalty=request.parameters.length_penalty,
            early_stopping=request.parameters.early_stopping,
            max_new_tokens=request.max_length - len(request.prompt_ids),
        )

    def score_rows(self, round_number: int, logits: LogitIndices) -> list[ScoreRow]:
        """One row for each beam."""
        return [self._score_row(index, logits) for index in range(len(self.rows))]

    def advance(self, scores: RoundScores, blocks: BlockManager) -> Sequence[int]:
        """Continue the best beams, and keep those that end among the hypotheses."""
        parameters = self.request.parameters
        if self._is_exhausted(scores.scores):
            self._check_answers(len(self._search.finished))
            self.is_done = True
            return ()
        logprobs = self._warped(scores.scores)
        choose = self._drawn_candidates if parameters.do_sample else self._best_candidates
        candidates = choose(logprobs, self._sums)
        is_end = [self._stopping.finish_reason(self.rows[c.beam].tokens, c.token) is not None for c in candidates]
        paths = self._paths(logprobs, candidates)

        def hypothesis(score: float, candidate: Candidate) -> Hypothesis:
            ids = (*self.rows[candidate.beam].new_token_ids, candidate.token)
            return Hypothesis(score, ids, paths[candidate.beam, candidate.token])

        running = self._search.advance(candidates, is_end, hypothesis, self._num_new_tokens)
        self.is_done = self._search.is_done
        if self.is_done:
            self._check_answers(len(self._search.finished))
        else:
            self._sums = [candidate.score for candidate in running]
            self._scores = [paths[candidate.beam, candidate.token] for candidate in running]
            self._continue(running, blocks)
        return ()

    def _warped(self, scores: Tensor) -> Tensor:
        warped = scores
        if self.request.parameters.do_sample:
            warped = warp(scores.clone() if self.constrained is not None else scores, [self.settings] * len(scores))
        if self.request.parameters.renormalize_logits:
            warped = warped.log_softmax(-1)
        return self._without_lost_beams(scores, warped)

    def _paths(self, logprobs: Tensor, candidates: list[Candidate]) -> dict[tuple[int, int], tuple[float, ...]]:
        """For each candidate, by beam and token, the scores of its beam's tokens and of its own, if requested."""
        if not self.request.parameters.output_scores:
            return {(c.beam, c.token): () for c in candidates}
        own = logprobs.log_softmax(-1)[[c.beam for c in candidates], [c.token for c in candidates]].tolist()
        return {(c.beam, c.token): (*self._scores[c.beam], score) for c, score in zip(candidates, own, strict=True)}

    def result(self) -> tuple[GeneratedSequence, ...]:
        """The best hypotheses."""
        parameters = self.request.parameters
        found = [self._sequence(best) for best in self._search.finished[: parameters.num_return_sequences]]
        # If scores of -inf let too few beams end, transformers fills the answer up with one token per sequence.
        fill = parameters.pad_token_id or (self.settings.eos_token_ids or [0])[0]  # `or` as in transformers
        filler = GeneratedSequence((fill,), "stop", (0.0,) if parameters.output_scores else None)
        return (*found, *[filler] * (parameters.num_return_sequences - len(found)))

    def _sequence(self, best: Hypothesis) -> GeneratedSequence:
        *before, last = best.token_ids
        history = self.rows[0].tokens[: self.rows[0].num_prompt_tokens]
        history.extend(before)
        is_stopped = last in self.settings.eos_token_ids or self._stopping.completes_string(history, last)
        reason: FinishReason = "stop" if is_stopped else "length"
        return GeneratedSequence(best.token_ids, reason, best.path if self.request.parameters.output_scores else None)
