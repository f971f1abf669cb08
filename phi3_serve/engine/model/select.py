"""Which runner a model gets."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kernels.self_check import ModelShape, check_kernels, with_fallbacks
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import head_dim, sliding_window
from phi3_serve.engine.model.device_runner import CudaGraphs, DeviceRunner, Replay
from phi3_serve.engine.model.linear import compute_dtype
from phi3_serve.engine.model.runner import ModelRunner

Runner = ModelRunner | DeviceRunner


class RunnerFactory(Protocol):
    """Makes the runner of a model."""

    def __call__(self, model: Any, sizes: EngineSizes, *, releases_weights: bool = False) -> Runner:
        """A runner for ``model``, a Phi3ForCausalLM; ``releases_weights``: see ``Decoder``."""


def new_runner(model: Any, sizes: EngineSizes, *, releases_weights: bool = False) -> Runner:
    """The fastest runner for ``model`` on its device; see ``RunnerFactory``."""
    dtype = compute_dtype(model.dtype, model.device)
    if model.device.type == "cuda":
        return _cuda_runner(model, sizes, dtype, releases_weights=releases_weights)
    kernels = select_kernels(model.device, dtype, head_dim(model.config))
    return ModelRunner(model, kernels, num_blocks=sizes.num_blocks, releases_weights=releases_weights)


def _cuda_runner(model: Any, sizes: EngineSizes, dtype: torch.dtype, *, releases_weights: bool) -> DeviceRunner:
    # Triton is installed with torch for CUDA only.
    from phi3_serve.engine.kernels.cuda import CudaKernels
    from phi3_serve.engine.sampling.triton_chooser import TritonChooser

    config = model.config
    kernels = CudaKernels(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        dtype=dtype,
        device=model.device,
    )
    findings = check_kernels(kernels, _shape(model), device=model.device, dtype=dtype)
    runner = DeviceRunner(
        model,
        with_fallbacks(kernels, findings),
        TritonChooser(model.device),
        _without_graphs if findings else CudaGraphs(),
        num_blocks=sizes.num_blocks,
        max_rows=sizes.max_rows,
        token_budget=sizes.token_budget,
        releases_weights=releases_weights,
    )
    runner.capture_graphs()
    return runner


def _without_graphs(run: Callable[[], Tensor]) -> Replay:
    """``Capture`` for kernels that cannot be captured, as those of the reference."""
    return run


def _shape(model: Any) -> ModelShape:
    config = model.config
    return ModelShape(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim(config),
        rotary_dim=2 * len(model.model.rotary_emb.inv_freq),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        window=sliding_window(config),
    )
