"""``TokenChooser`` by one Triton kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels import triton_sampling, triton_warpers
from phi3_serve.engine.kernels.triton_sampling import PackedRow
from phi3_serve.engine.sampling.chooser_trial import ChooserTrial
from phi3_serve.engine.sampling.device_sampler import ChoiceRow
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.sampling.score_edits import Phase, edits
from phi3_serve.engine.sampling.warpers import requested


class TritonChooser:
    """Chooses on a GPU, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._seed = torch.tensor([torch.seed() >> 2, 0], device=device)  # a seed and the number of the step
        self._rows: tuple[tuple[int, int, Phase], ...] = ()
        self._settings: tuple[Tensor, ...] = ()

    def supports(self, settings: ScoreSettings) -> bool:
        """See ``TokenChooser``."""
        return settings.parameters.is_greedy or requested(settings.parameters) <= triton_warpers.PARAMETERS

    def prepare(self, logits: Tensor) -> str | None:
        """See ``TokenChooser``. It compiles the kernel, which takes seconds, and draws where only one token is left."""
        trial = ChooserTrial.like(logits)
        try:
            triton_sampling.choose_tokens(
                trial.logits, trial.floats, trial.ints, trial.edits, trial.counts, self._seed, trial.tokens
            )
            return trial.problem()
        except Exception as error:
            if kind_of(error) != "other":
                raise
            return f"{type(error).__name__}: {error}"

    def choose(self, logits: Tensor, rows: Sequence[ChoiceRow], counts: Tensor, tokens: Tensor) -> None:
        """See ``TokenChooser``."""
        floats, ints, *edited = self._on_device(rows)
        triton_sampling.choose_tokens(logits, floats, ints, (edited[0], edited[1]), counts, self._seed, tokens)
        self._seed[1] += 1

    def _on_device(self, rows: Sequence[ChoiceRow]) -> tuple[Tensor, ...]:
        """The settings of ``rows``; they are copied only when the rows, their slots or their phases change.

        A copy from memory that is not pinned makes the host wait until the step before has ended. torch does not use
        pinned memory again before it is copied.
        """
        ids = tuple((id(row.settings), row.slot, row.phase) for row in rows)
        if ids != self._rows:
            arrays = triton_sampling.packed(
                [
                    PackedRow(of.parameters, of.min_tokens_to_keep, slot, edits(of, phase) if of.processors else {})
                    for of, slot, phase in rows
                ]
            )
            settings = tuple(self._copied(torch.from_numpy(array)) for array in arrays)
            self._rows, self._settings, self._kept = ids, settings, list(rows)
        return self._settings

    def _copied(self, settings: Tensor) -> Tensor:
        device = self._seed.device
        return settings.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else settings
