"""What plain and group beam search have in common: running beams, which are forked and released at each step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.hypotheses import NO_SCORE, Candidate
from phi3_serve.engine.sampling.processors import RULED_OUT
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.base import Strategy
from phi3_serve.errors import InvalidRequest


class BeamStrategy(Strategy):
    """A strategy whose rows are beams."""

    def __init__(self, request: EngineRequest, stopping: StoppingCriteria, long_factors_from: int | None) -> None:
        super().__init__(request, stopping, long_factors_from)
        # One running beam in each group at first; otherwise all beams would take the same tokens.
        self._sums = [0.0 if index % self._group_size == 0 else NO_SCORE for index in range(self.num_rows)]
        self._scores: list[tuple[float, ...]] = [()] * self.num_rows  # of each beam's tokens, if requested

    @property
    def num_rows(self) -> int:
        """One row for each beam."""
        return self.request.parameters.num_beams

    @property
    def _group_size(self) -> int:
        return self.num_rows // self.num_rounds

    @property
    def _num_new_tokens(self) -> int:
        """Tokens of the answer, the next one included."""
        return len(self.rows[0]) + 1 - self.rows[0].num_prompt_tokens

    def _best_candidates(self, scores: Tensor, sums: list[float]) -> list[Candidate]:
        """The best continuations of beams with ``scores`` [beams, vocabulary] and summed scores ``sums``."""
        total = _total(scores, sums)
        values, ids = total.topk(self._num_candidates(total, len(sums)))
        return _as_candidates(values, ids, scores.shape[1])

    def _drawn_candidates(self, scores: Tensor, sums: list[float]) -> list[Candidate]:
        """Continuations drawn without replacement, in the order in which they are drawn."""
        total = _total(scores, sums)
        count = self._num_candidates(total, len(sums))
        # on the CPU, where the generator is
        ids = torch.multinomial(total.softmax(-1)[None].cpu(), count, generator=self._generator)[0]
        return _as_candidates(total[ids.to(total.device)], ids, scores.shape[1])

    def _num_candidates(self, total: Tensor, num_beams: int) -> int:
        """So many that ``num_beams`` of them do not end even if all end-of-sequence tokens are among them."""
        return min(max(2, 1 + len(self.settings.eos_token_ids)) * num_beams, len(total))

    def _is_exhausted(self, scores: Tensor) -> bool:
        """Whether no beam with ``scores`` [beams, vocabulary] can go on as the constraint allows."""
        return self.constrained is not None and bool((scores.amax(-1) == RULED_OUT).all())

    def _without_lost_beams(self, before: Tensor, after: Tensor) -> Tensor:
        """``after``, in which beams to which the constraint left nothing stay ruled out. Softmax makes them nan."""
        if self.constrained is None:
            return after
        return after.masked_fill((before.amax(-1) == RULED_OUT)[:, None], RULED_OUT)

    def _check_answers(self, num_found: int) -> None:
        """Refuse a request whose constraint leaves too few answers; without one, others fill the answer up."""
        if self.constrained is None or num_found >= (wanted := self.request.parameters.num_return_sequences):
            return
        if not num_found:
            raise self._nothing_is_left()
        raise InvalidRequest(
            f"`{self.settings.structured_kind}` leaves beam search only {num_found} answers; "
            f"`num_return_sequences` is {wanted}.",
            "num_return_sequences",
        )

    def _continue(self, chosen: Sequence[Candidate], blocks: BlockManager) -> None:
        """Make the beams of the next step: forks of those that are chosen. A candidate's beam is its row."""
        if self.constrained is not None:
            self.constrained.reorder([c.beam for c in chosen], [c.token for c in chosen])
        forked: set[int] = set()
        rows = []
        for candidate in chosen:
            parent = self.rows[candidate.beam]
            rows.append(parent.fork(blocks) if candidate.beam in forked else parent)
            forked.add(candidate.beam)
        for index in set(range(len(self.rows))) - forked:
            self.rows[index].release(blocks)
        for row, candidate in zip(rows, chosen, strict=True):
            row.append(candidate.token)
        # transformers does not reorder the rows of the negative prompt with the beams
        for row, candidate in zip(self.negative_prompt_rows, chosen, strict=False):
            row.append(candidate.token)
        self.rows = rows


def _total(scores: Tensor, sums: list[float]) -> Tensor:
    return (scores + torch.tensor(sums, device=scores.device)[:, None]).flatten()


def _as_candidates(values: Tensor, ids: Tensor, vocab_size: int) -> list[Candidate]:
    pairs = zip(values.tolist(), ids.tolist(), strict=True)
    return [Candidate(value, index % vocab_size, index // vocab_size) for value, index in pairs]
