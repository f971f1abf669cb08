"""Tokens that are chosen on the device, so that the next step can be launched before the host reads them.

This serves plain rows: the greedy ones and the drawn ones whose parameters need no more of the sequence than counts of
its tokens, and no generator of their own. All other rows go through ``sampler``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.sampling.drawing import draw
from phi3_serve.engine.sampling.penalties import are_countable, penalised
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.sampling.strategies.base import Strategy
from phi3_serve.engine.sampling.token_counts import NO_SLOT, TokenCounts

logger = logging.getLogger("phi3_serve")

CHOOSE_TOKENS = "choose_tokens"
NOT_CHOSEN = -1  # the scores of the row are not numbers
NUM_HOST_BUFFERS = 2  # the tokens of a step are read after those of the next one are under way


class ChoiceRow(NamedTuple):
    """What one token is chosen with."""

    settings: ScoreSettings
    slot: int = NO_SLOT  # of the counts; a row without penalties has none


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
        scores = logits.float()
        if counted:
            of_counted = counts[[slots[index] for index in counted]]
            penalties = penalised(scores[counted], of_counted, [settings[index] for index in counted])
            scores = scores.index_copy(0, torch.tensor(counted, device=scores.device), penalties)
        tokens.copy_(scores.argmax(-1))
        drawn = [index for index, row in enumerate(settings) if not row.parameters.is_greedy]
        is_valid = (~scores.isnan().any(-1) & (scores.amax(-1) > -torch.inf)).tolist()
        if drawn_valid := [index for index in drawn if is_valid[index]]:
            of_drawn = draw(scores[drawn_valid], [settings[index] for index in drawn_valid])
            tokens[drawn_valid] = torch.tensor(of_drawn, dtype=tokens.dtype, device=tokens.device)
        tokens[[index for index, valid in enumerate(is_valid) if not valid]] = NOT_CHOSEN
        if to_count := [index for index in counted if is_valid[index]]:
            counts[[slots[index] for index in to_count], tokens[to_count].long()] += 2


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

    def supports(self, strategy: Strategy) -> bool:
        """Whether the next tokens of ``strategy`` need no more than logits, counts and this sampler's parameters."""
        settings, parameters = strategy.settings, strategy.settings.parameters
        return (
            strategy.choice != "by_strategy"
            and are_countable(settings)
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
        counted = [s for of, s in zip(settings, sequences, strict=True) if of.processors]
        if not counted:
            return [ChoiceRow(of) for of in settings]
        slots = iter(self.counts.slots(counted))
        return [ChoiceRow(of, next(slots) if of.processors else NO_SLOT) for of in settings]
