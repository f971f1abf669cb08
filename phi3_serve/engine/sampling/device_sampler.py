"""Tokens that are chosen on the device, so that the next step can be launched before the host reads them.

This serves plain rows: the greedy ones and the drawn ones whose parameters need neither the history of the sequence nor
a generator of their own. All other rows go through ``sampler``.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from phi3_serve.engine.sampling.drawing import draw
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.sampling.strategies.base import Strategy

logger = logging.getLogger("phi3_serve")

CHOOSE_TOKENS = "choose_tokens"
NOT_CHOSEN = -1  # the scores of the row are not numbers
NUM_HOST_BUFFERS = 2  # the tokens of a step are read after those of the next one are under way


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

    def choose(self, logits: Tensor, rows: Sequence[ScoreSettings], tokens: Tensor) -> None:
        """Write the token of each row of ``logits`` [rows, vocabulary] to ``tokens``, int32 [rows].

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

    def choose(self, logits: Tensor, rows: Sequence[ScoreSettings], tokens: Tensor) -> None:
        """See ``TokenChooser``."""
        scores = logits.float()
        tokens.copy_(scores.argmax(-1))
        drawn = [index for index, row in enumerate(rows) if not row.parameters.is_greedy]
        is_valid = (~scores.isnan().any(-1) & (scores.amax(-1) > -torch.inf)).tolist()
        if drawn_valid := [index for index in drawn if is_valid[index]]:
            of_drawn = draw(scores[drawn_valid], [rows[index] for index in drawn_valid])
            tokens[drawn_valid] = torch.tensor(of_drawn, dtype=tokens.dtype, device=tokens.device)
        tokens[[index for index, valid in enumerate(is_valid) if not valid]] = NOT_CHOSEN


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

    def __init__(self, chosen: Tensor, chooser: TokenChooser) -> None:
        """``chosen``: int32 on the device, for the tokens of the last step. The next step reads them there."""
        self.max_rows = len(chosen)  # of one step
        self._chosen = chosen
        self._chooser = chooser
        self.replaced: dict[str, str] = {}  # the kernel of the chooser if torch replaces it, and the reason
        self._is_cuda = chosen.device.type == "cuda"
        self._on_host = [torch.zeros(len(chosen), dtype=torch.int32, pin_memory=self._is_cuda) for _ in range(2)]
        self._next = 0

    def supports(self, strategy: Strategy) -> bool:
        """Whether the next tokens of ``strategy`` depend on nothing but its logits and this sampler's parameters."""
        settings, parameters = strategy.settings, strategy.settings.parameters
        return (
            strategy.choice != "by_strategy"
            and not settings.processors
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

    def launch(self, logits: Tensor, rows: Sequence[ScoreSettings]) -> ChosenTokens:
        """Choose a token for each row of ``logits``, [rows, vocabulary]."""
        count = len(rows)
        self._chooser.choose(logits, rows, self._chosen[:count])
        on_host, self._next = self._on_host[self._next][:count], (self._next + 1) % NUM_HOST_BUFFERS
        on_host.copy_(self._chosen[:count], non_blocking=True)
        copied = None
        if self._is_cuda:
            copied = torch.cuda.Event()
            copied.record()
        return ChosenTokens(on_host, copied)
