"""Which runner a model gets."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch

from phi3_serve.engine.kernels.contract import ADD_LOW_RANK, ATTEND, FLASH_ATTENTION
from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kernels.self_check import ModelShape, check_kernels, with_fallbacks
from phi3_serve.engine.memory import EngineSizes, FittingSizes, block_bytes, sizes_on_cpu, sizes_on_gpu
from phi3_serve.engine.model.decoder import Decoder, sliding_window
from phi3_serve.engine.model.device_runner import CudaGraphs, DeviceRunner, without_graphs
from phi3_serve.engine.model.largest_step import measure_largest_step
from phi3_serve.engine.model.linear import compute_dtype
from phi3_serve.engine.model.rope import rotary_dim
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.weights import head_dim

logger = logging.getLogger("phi3_serve")

Runner = ModelRunner | DeviceRunner
Sizes = EngineSizes | FittingSizes


class RunnerFactory(Protocol):
    """Makes the runner of a model."""

    def __call__(self, model: Any, sizes: Sizes, *, releases_weights: bool = False) -> Runner:
        """A runner for ``model``, Phi3Weights or a Phi3ForCausalLM; ``releases_weights``: see ``Decoder``."""


def new_runner(
    model: Any,
    sizes: Sizes,
    *,
    releases_weights: bool = False,
    cuda_graphs: bool = True,
    flash_attention: bool = True,
) -> Runner:
    """The fastest runner for ``model`` on its device; see ``RunnerFactory``.

    On a GPU, ``cuda_graphs`` allows the replay of steps, and ``flash_attention`` torch's attention of prompts.
    """
    dtype = compute_dtype(model.dtype, model.device)
    if model.device.type == "cuda":
        return _cuda_runner(
            model,
            sizes,
            dtype,
            releases_weights=releases_weights,
            cuda_graphs=cuda_graphs,
            flash_attention=flash_attention,
        )
    kernels = select_kernels(model.device, dtype, head_dim(model.config))
    if isinstance(sizes, FittingSizes):
        sizes = sizes_on_cpu(model.config, dtype, sizes)
    return ModelRunner(model, kernels, sizes, releases_weights=releases_weights)


def _cuda_runner(
    model: Any,
    sizes: Sizes,
    dtype: torch.dtype,
    *,
    releases_weights: bool,
    cuda_graphs: bool = True,
    flash_attention: bool = True,
) -> DeviceRunner:
    # Triton is installed with torch for CUDA only.
    from phi3_serve.engine.kernels.cuda import NOTHING_GATHERED, ChunkSize, CudaKernels
    from phi3_serve.engine.kernels.prompt_attention import sizes_to_gather
    from phi3_serve.engine.sampling.triton_chooser import TritonChooser

    config = model.config

    def make_kernels(gathered: Mapping[ChunkSize, bool]) -> CudaKernels:
        return CudaKernels(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            dtype=dtype,
            device=model.device,
            gathered=gathered,
        )

    began = time.perf_counter()
    cuda, shape = make_kernels(NOTHING_GATHERED), _shape(model)
    findings = check_kernels(cuda, shape, device=model.device, dtype=dtype, kv_cache_dtype=sizes.kv_cache_dtype)
    if flash_attention and all(finding.kernel != ATTEND for finding in findings):
        trial = sizes_to_gather(
            make_kernels,
            shape,
            device=model.device,
            dtype=dtype,
            context=config.max_position_embeddings,
            cache_has_8_bits=sizes.kv_cache_dtype != "auto",
        )
        cuda = make_kernels(trial.gathered)
        if trial.problem is not None:
            cuda.replaced = {FLASH_ATTENTION: trial.problem}
    logger.info("the kernels were checked and timed in %.1f s, compiling included", time.perf_counter() - began)
    kernels = with_fallbacks(cuda, findings)
    decoder = Decoder(model, kernels, releases_weights=releases_weights)

    def make(of_runner: EngineSizes) -> DeviceRunner:
        is_captured = cuda_graphs and all(finding.kernel == ADD_LOW_RANK for finding in findings)
        capture = CudaGraphs() if is_captured else without_graphs
        of_runner = replace(of_runner, kv_cache_dtype=sizes.kv_cache_dtype)
        return DeviceRunner(decoder, kernels, TritonChooser(model.device), capture, of_runner)

    if isinstance(sizes, FittingSizes):
        of_block = block_bytes(config, dtype, sizes.kv_cache_dtype)
        sizes = sizes_on_gpu(partial(measure_largest_step, make, of_block, sizes), of_block, sizes)
    runner = make(sizes)
    runner.capture_graphs()
    runner.warm_up()
    return runner


def _shape(model: Any) -> ModelShape:
    config = model.config
    return ModelShape(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim(config),
        rotary_dim=rotary_dim(config),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        window=sliding_window(config),
    )
