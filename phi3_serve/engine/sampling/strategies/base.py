"""The contract between the sampler and the strategies: how one request goes from scores to its next tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import GeneratedSequence, TokenLogprobs
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.sampling.masks import ConstrainedRows
from phi3_serve.engine.sampling.processors import ScoreRow, ScoreSettings
from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.errors import InvalidRequest

# How the token of each row is chosen: by the sampler, as the most likely one or drawn together with the rows of other
# requests, or by the strategy itself in ``advance``.
Choice = Literal["most_likely", "drawn_in_batch", "by_strategy"]


class LogitIndices(NamedTuple):
    """For each row of a strategy its first row of the step's logits."""

    rows: Sequence[int]
    negative_prompt_rows: Sequence[int]  # empty without guidance


@dataclass(frozen=True, slots=True)
class RoundScores:
    """What a strategy advances with in one round."""

    round_number: int
    rows: Sequence[ScoreRow]  # as ``score_rows`` gave them
    scores: Tensor  # processed, float32 [rows, vocabulary]; with beam search they are log-probabilities
    logits: Tensor  # of the whole step, unprocessed, of any float type [logits of the step, vocabulary]
    tokens: Sequence[int] | None = None  # for each row the sampler's choice; None if the strategy chooses


class Strategy(ABC):
    """The sequences of one request, and the algorithm that continues them.

    In each step whose logits are complete for the request, the sampler calls:

    1. ``begin``. The first call forks the prompt into ``num_rows`` rows.
    2. For each of ``num_rounds`` rounds ``score_rows``, which names the rows to score, and then ``advance``, which
       appends the next tokens. Between the two, the sampler scores the rows of all requests together and, depending
       on ``choice``, chooses a token for each row.

    When ``is_done``, ``result`` gives the answer. A strategy forks and releases sequences by their cache blocks; it
    does not touch the keys and values in them.
    """

    choice: Choice = "by_strategy"

    def __init__(self, request: EngineRequest, stopping: StoppingCriteria, long_factors_from: int | None) -> None:
        """``long_factors_from``: see ``CachedSequence``."""
        self.request = request
        self.settings = ScoreSettings(request)
        self.is_done = False
        # An adapter of strength 0 changes nothing.
        adapters = tuple(applied for applied in request.adapters if applied.strength)
        self.rows = [CachedSequence(request.prompt_ids, long_factors_from=long_factors_from, adapters=adapters)]
        self.negative_prompt_rows: list[CachedSequence] = []  # with guidance, one for each row
        if request.parameters.is_guided:
            negative_prompt = request.parameters.negative_prompt_ids or request.prompt_ids[-1:]
            self.negative_prompt_rows = [
                CachedSequence(
                    negative_prompt,
                    long_factors_from=long_factors_from,
                    recomputes_at_crossing=False,
                    adapters=adapters,
                )
            ]
        self.constrained = None if request.constraint is None else ConstrainedRows(request.constraint)
        seed = request.parameters.seed
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._stopping = stopping
        self._has_begun = False

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Rows after the prompt has been read."""

    @property
    def num_rounds(self) -> int:
        """Rounds of one step. A round sees what the rounds before it chose."""
        return 1

    @property
    def sequences_by_prompt(self) -> tuple[list[CachedSequence], list[CachedSequence]]:
        """The sequences that start with the prompt, and those that start with the negative prompt."""
        return self.rows, self.negative_prompt_rows

    @property
    def sequences(self) -> list[CachedSequence]:
        """All sequences."""
        return [*self.rows, *self.negative_prompt_rows]

    def permitted(self, draft: tuple[int, ...]) -> tuple[int, ...]:
        """As many tokens of ``draft``, one after another, as the constraint allows."""
        return draft if self.constrained is None else draft[: self.constrained.num_allowed(draft)]

    def start_masks(self, pool: Executor, vocab_size: int) -> None:
        """Let ``pool`` compute which tokens the constraint allows in the step that is about to run."""
        if self.constrained is None:
            return
        if self._has_begun or self.num_rows == 1:
            self.constrained.start([row.draft for row in self.rows], pool, vocab_size)
        else:
            self.constrained.start_equal(self.num_rows, pool, vocab_size)

    def begin(self, blocks: BlockManager) -> list[int]:
        """Begin a step; the first one forks the prompt. Returns for each row the row that was run for it."""
        self._stopping.start()
        if self._has_begun:
            return list(range(len(self.rows)))
        self._has_begun = True
        for sequences in self.sequences_by_prompt:
            sequences += [sequences[0].fork(blocks) for _ in range(self.num_rows - 1) if sequences]
        return [0] * self.num_rows

    @abstractmethod
    def score_rows(self, round_number: int, logits: LogitIndices) -> list[ScoreRow]:
        """The rows to score in this round; none if the round has nothing to choose."""

    def check_scores(self, best: Sequence[float]) -> None:
        """Check the ``best`` processed score of each row that ``score_rows`` gave.

        Raises:
            InvalidRequest: the constraint and the other parameters together allow no token.
        """
        return

    @abstractmethod
    def advance(self, scores: RoundScores, blocks: BlockManager) -> Sequence[int]:
        """Append the next tokens to the rows; fork and release rows as needed.

        Returns:
            the new tokens of the first sequence if they are final, so that they can be streamed; otherwise nothing.

        Raises:
            InvalidRequest: the parameters make the scores infinite or not a number.
        """

    def latest_logprobs(self, count: int) -> tuple[TokenLogprobs, ...] | None:
        """The log-probabilities of the last ``count`` tokens of the first sequence; None if they are not requested."""
        return None

    @abstractmethod
    def result(self) -> tuple[GeneratedSequence, ...]:
        """The sequences of the answer, best first."""

    def release(self, blocks: BlockManager) -> None:
        """Free the blocks of all sequences."""
        for sequence in self.sequences:
            sequence.release(blocks)

    def _score_row(self, index: int, logits: LogitIndices) -> ScoreRow:
        of_negative_prompt = logits.negative_prompt_rows[index] if logits.negative_prompt_rows else -1
        mask = None if self.constrained is None else self.constrained.mask(index)
        return ScoreRow(self.settings, self.rows[index].tokens, logits.rows[index], of_negative_prompt, mask=mask)

    def _nothing_is_left(self) -> InvalidRequest:
        kind = self.settings.structured_kind
        return InvalidRequest(
            f"`{kind}` allows none of the tokens that the other parameters leave, such as bad_words or "
            "allowed_token_ids.",
            kind,
        )
