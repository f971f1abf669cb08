"""Which runner a model gets."""

from typing import Any, Protocol

from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import head_dim
from phi3_serve.engine.model.device_runner import DeviceRunner
from phi3_serve.engine.model.linear import compute_dtype
from phi3_serve.engine.model.runner import ModelRunner

Runner = ModelRunner | DeviceRunner


class RunnerFactory(Protocol):
    """Makes the runner of a model."""

    def __call__(self, model: Any, sizes: EngineSizes, *, releases_weights: bool = False) -> Runner:
        """A runner for ``model``, a Phi3ForCausalLM; ``releases_weights``: see ``Decoder``."""


def new_runner(model: Any, sizes: EngineSizes, *, releases_weights: bool = False) -> Runner:
    """The fastest runner for ``model`` on its device; see ``RunnerFactory``."""
    kernels = select_kernels(model.device, compute_dtype(model.dtype, model.device), head_dim(model.config))
    return ModelRunner(model, kernels, num_blocks=sizes.num_blocks, releases_weights=releases_weights)
