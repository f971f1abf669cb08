"""``TokenChooser`` by one Triton kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels import triton_sampling, triton_warpers
from phi3_serve.engine.sampling.chooser_trial import ChooserTrial
from phi3_serve.engine.sampling.processors import ScoreSettings
from phi3_serve.engine.sampling.warpers import requested


class TritonChooser:
    """Chooses on a GPU, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._seed = torch.tensor([torch.seed() >> 2, 0], device=device)  # a seed and the number of the step
        self._rows: tuple[int, ...] = ()
        self._settings = (torch.empty(0), torch.empty(0))

    def supports(self, settings: ScoreSettings) -> bool:
        """See ``TokenChooser``."""
        return settings.parameters.is_greedy or requested(settings.parameters) <= triton_warpers.PARAMETERS

    def prepare(self, logits: Tensor) -> str | None:
        """See ``TokenChooser``. It compiles the kernel, which takes seconds, and draws where only one token is left."""
        trial = ChooserTrial.like(logits)
        try:
            triton_sampling.choose_tokens(trial.logits, trial.floats, trial.ints, self._seed, trial.tokens)
            found = trial.tokens.tolist()
        except Exception as error:
            if kind_of(error) != "other":
                raise
            return f"{type(error).__name__}: {error}"
        return None if found == trial.expected else f"it chose {found} instead of {trial.expected}"

    def choose(self, logits: Tensor, rows: Sequence[ScoreSettings], tokens: Tensor) -> None:
        """See ``TokenChooser``."""
        floats, ints = self._on_device(rows)
        triton_sampling.choose_tokens(logits, floats, ints, self._seed, tokens)
        self._seed[1] += 1

    def _on_device(self, rows: Sequence[ScoreSettings]) -> tuple[Tensor, Tensor]:
        """The settings of ``rows``; they are copied only when the rows change.

        A copy from memory that is not pinned makes the host wait until the step before has ended. torch does not use
        pinned memory again before it is copied.
        """
        ids = tuple(map(id, rows))
        if ids != self._rows:
            arrays = triton_sampling.packed([(row.parameters, row.min_tokens_to_keep) for row in rows])
            floats, ints = (self._copied(torch.from_numpy(array)) for array in arrays)
            self._rows, self._settings, self._kept = ids, (floats, ints), list(rows)
        return self._settings

    def _copied(self, settings: Tensor) -> Tensor:
        device = self._seed.device
        return settings.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else settings
