"""In which dtype a model computes and how its weights are rounded: what the operator wants, and what is possible."""

import logging
import math
from dataclasses import dataclass

import psutil
import torch
from transformers import Phi3Config

from phi3_serve.catalogue import EXACT_QUANTIZATIONS, FP8, NO_QUANTIZATION, QUANTIZED_BYTES, memory_needed
from phi3_serve.engine.checkpoint import Checkpoint
from phi3_serve.engine.device import compute_capability, device_name, free_gpu_bytes
from phi3_serve.engine.kernels.half_panels import keeps_dtype
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype, bytes_of_head
from phi3_serve.engine.precision import (
    dtype_to_load,
    has_bfloat16,
    problem_of_kv_cache_dtype,
    problem_of_quantization,
    quantization_to_load,
)
from phi3_serve.engine.stored_quantization import StoredQuantization
from phi3_serve.engine.weights import head_dim
from phi3_serve.errors import CheckpointError, DeviceMissing
from phi3_serve.observability.progress import human_bytes

logger = logging.getLogger("phi3_serve")

DTYPE_OF_PHI3 = "bfloat16"  # if config.json names none
STORED_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}  # by their names in files


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPrecision:
    """What the operator wants; the arguments of ``loader.load``."""

    device: str
    dtype: str
    quantization: str
    kv_cache_dtype: KvCacheDtype
    gpu_share: float
    merges_adapters: bool = False  # into weights, which are float32 then


@dataclass(frozen=True, slots=True)
class Precision:
    """What a model is loaded in."""

    dtype: str  # by its name in torch; auto: that of the checkpoint
    quantization: str  # of the weights


def require_possible(name: str, wanted: WantedPrecision) -> None:
    """Refuse what no checkpoint can have on the device, before one is fetched.

    Raises:
        DeviceMissing: there is no GPU.
        CheckpointError: the GPU or the CPU does not have the dtype or the quantization.
    """
    device = torch.device(wanted.device)
    if wanted.device == "cuda" and not torch.cuda.is_available():
        raise DeviceMissing(f"{name}: device is cuda, but torch sees no GPU on this node")
    if wanted.dtype == "bfloat16":
        _require_bfloat16(name, device)
    capability = compute_capability(device)
    for problem in (
        problem_of_kv_cache_dtype(wanted.kv_cache_dtype, capability),
        problem_of_quantization(wanted.quantization, capability),
    ):
        if problem is not None:
            raise CheckpointError(f"{name}: {problem}")


def choose_precision(name: str, checkpoint: Checkpoint, config: Phi3Config, wanted: WantedPrecision) -> Precision:
    """What the model is loaded in.

    Raises:
        CheckpointError: the checkpoint has weights of fewer bits, and others are wanted or the device lacks them; or
            fp8 would be computed in float32.
    """
    quantization = wanted.quantization
    if checkpoint.quantization is not None:
        quantization = _stored_quantization(name, checkpoint.quantization, quantization)
        capability = compute_capability(torch.device(wanted.device))
        if problem := problem_of_quantization(quantization, capability, is_stored=True):
            raise CheckpointError(f"{name}: {problem}")
    dtype = _dtype_to_load(name, checkpoint, device=wanted.device, dtype=wanted.dtype)
    if quantization == FP8 and dtype_of_model(checkpoint, dtype) == "float32":
        raise CheckpointError(f"{name}: quantization is fp8, but dtype is float32; allowed are bfloat16 and float16")
    return Precision(dtype, _quantization_to_load(name, checkpoint, config, quantization, dtype, wanted))


def dtype_of_model(checkpoint: Checkpoint, taken: str) -> str:
    """The dtype that the model computes in, if ``taken`` is what it is loaded in."""
    return _stored_dtype(checkpoint) or DTYPE_OF_PHI3 if taken == "auto" else taken


def _require_bfloat16(name: str, device: torch.device) -> None:
    """Refuse a GPU that would emulate bfloat16, for which there are no kernels. A CPU computes it in float32."""
    capability = compute_capability(device)
    if capability is not None and not has_bfloat16(capability):
        raise CheckpointError(
            f"{name}: dtype is bfloat16, but {_chip(device)} has no bfloat16; allowed are float16, float32 and auto"
        )


def _chip(device: torch.device) -> str:
    major, minor = compute_capability(device) or (0, 0)
    return f"{device_name(device)} (compute capability {major}.{minor})"


def _dtype_to_load(name: str, checkpoint: Checkpoint, *, device: str, dtype: str) -> str:
    """See ``dtype_to_load``. The log says it if the checkpoint's dtype is not taken."""
    taken = dtype_to_load(dtype, stored=_stored_dtype(checkpoint), capability=compute_capability(torch.device(device)))
    if device == "cuda" and dtype == "auto" and taken != "auto":
        logger.info("%s: %s instead of bfloat16, which %s does not have", name, taken, _chip(torch.device(device)))
    return taken


def _stored_dtype(checkpoint: Checkpoint) -> str | None:
    """The dtype that config.json names; transformers 4 called it otherwise."""
    return checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype")


def _quantization_to_load(
    name: str, checkpoint: Checkpoint, config: Phi3Config, quantization: str, dtype: str, wanted: WantedPrecision
) -> str:
    """See ``quantization_to_load``. The log says it if ``auto`` rounds the weights."""
    if quantization != "auto":
        return quantization
    available = free_gpu_bytes(wanted.gpu_share) if wanted.device == "cuda" else psutil.virtual_memory().available
    of_model = dtype_of_model(checkpoint, dtype)
    kv_heads = 2 * config.num_hidden_layers * (config.num_key_value_heads or 0)
    kv_bytes_per_token = kv_heads * bytes_of_head(head_dim(config), getattr(torch, of_model), wanted.kv_cache_dtype)
    of_floats = _float_bytes(checkpoint, of_model, wanted)
    needed = {
        each: memory_needed(
            checkpoint.num_parameters * QUANTIZED_BYTES[each] if each in QUANTIZED_BYTES else of_floats,
            kv_bytes_per_token=kv_bytes_per_token,
            context_length=config.max_position_embeddings,
        )
        for each in EXACT_QUANTIZATIONS
    }
    taken = quantization_to_load(quantization, needed=needed, available=available)
    if taken != NO_QUANTIZATION:
        logger.info(
            "%s: weights in %s, because %s of memory are available and the model in %s needs %s",
            name,
            taken,
            human_bytes(available),
            of_model,
            human_bytes(needed[NO_QUANTIZATION]),
        )
    return taken


def _float_bytes(checkpoint: Checkpoint, of_model: str, wanted: WantedPrecision) -> int:
    """Bytes of the weights in memory if none is rounded; those that an adapter is merged into count as all."""
    computed = getattr(torch, of_model)

    def bytes_of(stored: str) -> int:
        dtype = STORED_HALVES.get(stored)
        is_kept = wanted.device == "cpu" and not wanted.merges_adapters and dtype and keeps_dtype(dtype, computed)
        return 2 if is_kept else computed.itemsize

    return sum(math.prod(tensor.shape) * bytes_of(tensor.dtype) for tensor in checkpoint.tensors.values())


def _stored_quantization(name: str, of_checkpoint: StoredQuantization, wanted: str) -> str:
    """That of a checkpoint whose weights are quantised already."""
    stored = of_checkpoint.quantization
    if wanted not in (NO_QUANTIZATION, "auto", stored):
        bits = FP8 if stored == FP8 else f"{of_checkpoint.bits} bits"
        raise CheckpointError(
            f"{name}: quantization is {wanted}, but the checkpoint has weights in {bits}; allowed are {stored} and auto"
        )
    return stored
