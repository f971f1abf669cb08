"""How fast the attention of a prompt's chunks is in Triton and by torch's FlashAttention-2 over gathered keys."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from phi3_serve.bench.shapes import config
from phi3_serve.engine.kernels.cuda import NOTHING_GATHERED, ChunkSize, CudaKernels
from phi3_serve.engine.kernels.flash_attention import problem_of_flash_attention
from phi3_serve.engine.kernels.prompt_attention import ALL_GATHERED, seconds_of_both
from phi3_serve.engine.kernels.self_check import ModelShape, problem_of_attention
from phi3_serve.engine.weights import head_dim
from tests.gpu.report import say, write

# The last chunk of a prompt of 2,048, of 4,000 and of 32,000 tokens, and smaller ones
SIZES = (
    ChunkSize(128, 2048),
    ChunkSize(512, 2048),
    ChunkSize(2048, 2048),
    ChunkSize(2048, 4000),
    ChunkSize(2048, 32_000),
)
# The chunks of a prompt of 5,000 tokens, and windows of few keys, of mini, and none
COMPARED = (ChunkSize(2048, 2048), ChunkSize(2048, 4096), ChunkSize(904, 5000))
WINDOWS = (None, 64, 2047)


def main(
    shapes: Sequence[str] = ("mini", "medium"),
    sizes: Sequence[ChunkSize] = SIZES,
    compared: Sequence[ChunkSize] = COMPARED,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Milliseconds and operations per second of both.

    Before, torch's is compared with the reference, and with Triton's for large chunks with and without a window.
    """
    found: dict[str, Any] = {}
    for name in shapes:
        shape = _shape(config(name))
        make = partial(_kernels, shape, torch.device(device), dtype)
        triton, flash = make(NOTHING_GATHERED), make(ALL_GATHERED)
        problem = problem_of_flash_attention(
            head_dim=shape.head_dim, dtype=dtype, is_before_ampere=triton.is_before_ampere, cache_has_8_bits=False
        )
        if problem is not None:
            say(f"{name}: torch's attention is not used, {problem}")
            found[name] = {"problem": problem}
            continue
        wrong = problem_of_attention(flash, shape, device=torch.device(device), dtype=dtype)
        assert wrong is None, f"{name}: torch's attention: {wrong}"
        for window, size in product(WINDOWS, compared):
            of_window = replace(shape, window=window)
            seconds_of_both(triton, flash, size, of_window, torch.device(device), dtype)  # raises if they differ
        say(f"{name}: torch's attention is right, also of {len(compared)} large chunks with windows {WINDOWS}")
        for size in sizes:
            both = seconds_of_both(triton, flash, size, shape, torch.device(device), dtype)
            queries, keys = size
            operations = 4 * shape.num_heads * shape.head_dim * queries * (keys - (queries - 1) / 2)
            rates = [operations / seconds / 1e12 for seconds in both]
            say(
                f"{name}, {queries} tokens over {keys} keys: Triton {both[0] * 1e3:.3f} ms, {rates[0]:.0f} TFLOP/s; "
                f"torch with its gathering {both[1] * 1e3:.3f} ms, {rates[1]:.0f} TFLOP/s"
            )
            found[f"{name}, {queries} over {keys}"] = {"triton_ms": both[0] * 1e3, "torch_ms": both[1] * 1e3}
            write(found)
    return found


def _kernels(
    shape: ModelShape, device: torch.device, dtype: torch.dtype, gathered: Mapping[ChunkSize, bool]
) -> CudaKernels:
    return CudaKernels(
        num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, dtype=dtype, device=device, gathered=gathered
    )


def _shape(model: Any) -> ModelShape:
    """Without a window, as at 32,000 tokens."""
    return ModelShape(
        num_heads=model.num_attention_heads,
        num_kv_heads=model.num_key_value_heads,
        head_dim=head_dim(model),
        rotary_dim=head_dim(model),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        window=None,
    )
