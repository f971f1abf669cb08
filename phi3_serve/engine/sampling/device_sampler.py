"""Tokens that are chosen on the device, so that the next step can be launched before the host reads them.

This serves plain rows: the greedy ones and the drawn ones whose parameters need no more of the sequence than counts of
its tokens, and no generator of their own. All other rows go through ``sampler``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.sampling import penalties, score_edits
from phi3_serve.engine.sampling.drawing import draw
from phi3_serve.engine.sampling.penalties import are_countable, penalised
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.sampling.score_edits import Phase, are_editable, edits
from phi3_serve.engine.sampling.strategies.base import Strategy
from phi3_serve.engine.sampling.token_counts import NO_SLOT, TokenCounts

logger = logging.getLogger("phi3_serve")

CHOOSE_TOKENS = "choose_tokens"
NOT_CHOSEN = -1  # the scores of the row are not numbers
_PROCESSORS = penalties.PROCESSORS | score_edits.PROCESSORS
NUM_HOST_BUFFERS = 2  # the tokens of a step are read after those of the next one are under way


class ChoiceRow(NamedTuple):
    """What one token is chosen with."""

    settings: ScoreSettings
    slot: int = NO_SLOT  # of the counts; a row without penalties has none
    phase: Phase = Phase()


class TokenChooser(Protocol):
    """Chooses one token for each row on the device."""

    def supports(self, settings: ScoreSettings) -> bool:
        """Whether this chooser implements all parameters of ``settings`` that sampling needs."""

    def prepare(self, logits: Tensor) -> str | None:
        """Do once what the first choice from logits like these [rows, vocabulary] would make requests wait for.

        Returns what is wrong with this chooser on this device, or None.

        Raises:
            torch.AcceleratorError: the device has failed. Nothing can run on it any more.
        """

    def choose(self, logits: Tensor, rows: Sequence[ChoiceRow], counts: Tensor, tokens: Tensor) -> None:
        """Write the token of each row of ``logits`` [rows, vocabulary] to ``tokens``, int32 [rows].

        ``counts`` are those of ``TokenCounts`` on the device. The token is added to those of the row.

        A row whose scores are not numbers gets ``NOT_CHOSEN``.
        """


class TorchChooser:
    """``TokenChooser`` in torch. It waits for the device."""

    def supports(self, settings: ScoreSettings) -> bool:
        """All."""
        return True

    def prepare(self, logits: Tensor) -> str | None:
        """See ``TokenChooser``."""
        return None

    def choose(self, logits: Tensor, rows: Sequence[ChoiceRow], counts: Tensor, tokens: Tensor) -> None:
        """See ``TokenChooser``."""
        settings, slots = [row.settings for row in rows], [row.slot for row in rows]
        counted = [index for index, slot in enumerate(slots) if slot != NO_SLOT]
        scores = _edited(logits.float(), rows)
        if counted:
            of_counted = counts[[slots[index] for index in counted]]
            of_counted = penalised(scores[counted], of_counted, [settings[index] for index in counted])
            scores = scores.index_copy(0, torch.tensor(counted, device=scores.device), of_counted)
        tokens.copy_(scores.argmax(-1))
        drawn = [index for index, row in enumerate(settings) if not row.parameters.is_greedy]
        is_valid = (~scores.isnan().any(-1) & (scores.amax(-1) > -torch.inf)).tolist()
        if drawn_valid := [index for index in drawn if is_valid[index]]:
            of_drawn = draw(scores[drawn_valid], [settings[index] for index in drawn_valid])
            tokens[drawn_valid] = torch.tensor(of_drawn, dtype=tokens.dtype, device=tokens.device)
        tokens[[index for index, valid in enumerate(is_valid) if not valid]] = NOT_CHOSEN
        if to_count := [index for index in counted if is_valid[index]]:
            counts[[slots[index] for index in to_count], tokens[to_count].long()] += 2


def _edited(scores: Tensor, rows: Sequence[ChoiceRow]) -> Tensor:
    added = {index: of_row for index, row in enumerate(rows) if (of_row := edits(row.settings, row.phase))}
    scores = scores.clone() if added else scores
    for index, of_row in added.items():
        scores[index, list(of_row)] += torch.tensor(list(of_row.values()), device=scores.device)
    return scores


@dataclass(frozen=True, slots=True)
class ChosenTokens:
    """The tokens of one step, on their way to the host."""

    on_host: Tensor
    copied: Any  # torch.cuda.Event; None on a CPU

    def read(self) -> list[int]:
        """The tokens; waits for the step."""
        if self.copied is not None:
            self.copied.synchronize()
        tokens: list[int] = self.on_host.tolist()
        return tokens


class DeviceSampler:
    """Chooses the tokens of plain rows and copies them to the host."""

    def __init__(self, chosen: Tensor, chooser: TokenChooser, vocab_size: int) -> None:
        """``chosen``: int32 on the device, for the tokens of the last step. The next step reads them there."""
        self.max_rows = len(chosen)  # of one step
        self.counts = TokenCounts(self.max_rows, vocab_size, chosen.device)
        self._chosen = chosen
        self._chooser = chooser
        self.replaced: dict[str, str] = {}  # the kernel of the chooser if torch replaces it, and the reason
        self._is_cuda = chosen.device.type == "cuda"
        self._on_host = [torch.zeros(len(chosen), dtype=torch.int32, pin_memory=self._is_cuda) for _ in range(2)]
        self._next = 0
        self._supported: WeakKeyDictionary[Strategy, bool] = WeakKeyDictionary()  # the answers of ``supports``

    def supports(self, strategy: Strategy) -> bool:
        """Whether the next tokens of ``strategy`` need no more than logits, counts and this sampler's parameters."""
        if strategy not in self._supported:
            self._supported[strategy] = self._supports(strategy)
        return self._supported[strategy]

    def _supports(self, strategy: Strategy) -> bool:
        settings, parameters = strategy.settings, strategy.settings.parameters
        return (
            strategy.choice != "by_strategy"
            and _PROCESSORS.issuperset(settings.processors)
            and are_countable(settings)
            and are_editable(settings)
            and not parameters.output_scores
            and parameters.top_logprobs is None
            and parameters.prompt_lookup_num_tokens is None
            and self._chooser.supports(settings)
        )

    def prepare(self, logits: Tensor) -> None:
        """See ``TokenChooser``. If the chooser is wrong on this device, torch takes its place, which is slower."""
        if problem := self._chooser.prepare(logits):
            logger.warning("The kernel that chooses tokens is replaced by torch: %s", problem)
            self._chooser, self.replaced = TorchChooser(), {CHOOSE_TOKENS: problem}

    def launch(
        self, logits: Tensor, settings: Sequence[ScoreSettings], sequences: Sequence[CachedSequence]
    ) -> ChosenTokens:
        """Choose a token for each of ``sequences`` from its row of ``logits``, [rows, vocabulary]."""
        count = len(settings)
        self._chooser.choose(logits, self._rows(settings, sequences), self.counts.on_device, self._chosen[:count])
        on_host, self._next = self._on_host[self._next][:count], (self._next + 1) % NUM_HOST_BUFFERS
        on_host.copy_(self._chosen[:count], non_blocking=True)
        copied = None
        if self._is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        return ChosenTokens(on_host, copied)

    def _rows(self, settings: Sequence[ScoreSettings], sequences: Sequence[CachedSequence]) -> list[ChoiceRow]:
        if not any(of.processors for of in settings):
            return [ChoiceRow(of) for of in settings]
        are_counted = [not penalties.PROCESSORS.isdisjoint(of.processors) for of in settings]
        slots = iter(self.counts.slots(list(compress(sequences, are_counted))))
        rows = []
        for of, sequence, is_counted in zip(settings, sequences, are_counted, strict=True):
            phase = Phase.of(of, len(sequence)) if of.processors else Phase()
            rows.append(ChoiceRow(of, next(slots) if is_counted else NO_SLOT, phase))
        return rows
