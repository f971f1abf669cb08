"""What computes the attention of a prompt's chunks: the Triton kernel, or torch's FlashAttention-2.

torch's operation needs gathered keys, and both depend on the GPU and on the heads of the model. So they are timed when
a model is loaded, for a few sizes of chunks.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from phi3_serve.engine.kernels.contract import GatheredQueries, PagedQueries
from phi3_serve.engine.kernels.cuda import NOTHING_GATHERED, ChunkSize, CudaKernels
from phi3_serve.engine.kernels.flash_attention import problem_of_flash_attention
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.self_check import ModelShape, problem_of_attention
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

logger = logging.getLogger("phi3_serve")

MakeKernels = Callable[[Mapping[ChunkSize, bool]], CudaKernels]  # with these chunks gathered

TRIAL_SIZES = tuple(ChunkSize(queries, keys) for queries in (128, 512, 2048) for keys in (2048, 8192))
TRIAL_ROUNDS = 5
CALLS = 4  # of a round, one launched behind the other, as in a step
ALL_GATHERED = {ChunkSize(1, 1): True}
NORM_BOUND = 0.01  # of the difference of both, relative; it is 0.002 in bfloat16, and 0.02 for one of 2,047 keys
LEAST_GAIN = 0.05  # of the time; less may be chance


class Trial(NamedTuple):
    """What came of ``sizes_to_gather``."""

    gathered: Mapping[ChunkSize, bool]  # for sizes of chunks, whether torch computes their attention right and faster
    problem: str | None = None  # what was wrong; None if nothing was, or if torch's operation has no such case


@torch.inference_mode()
def sizes_to_gather(
    make: MakeKernels,
    shape: ModelShape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    context: int,
    cache_has_8_bits: bool,
) -> Trial:
    """Compare torch's attention of chunks with the reference, and time it beside that of Triton.

    Args:
        make: the kernels.
        shape: of the model.
        device: to compare on.
        dtype: that the model computes in.
        context: the most tokens of a sequence.
        cache_has_8_bits: whether the key-value cache has 8 bits.

    Raises:
        torch.AcceleratorError: the device has failed. Nothing can run on it any more.
    """
    triton, flash = make(NOTHING_GATHERED), make(ALL_GATHERED)
    sizes = [size for size in TRIAL_SIZES if size.num_keys <= context]
    limit = problem_of_flash_attention(
        head_dim=shape.head_dim,
        dtype=dtype,
        is_before_ampere=triton.is_before_ampere,
        cache_has_8_bits=cache_has_8_bits,
    )
    if limit is None and not sizes:
        limit = f"the context has {context} tokens"
    if limit is not None:
        logger.info("Triton computes the attention of prompts: %s", limit)
        return Trial(NOTHING_GATHERED)
    try:
        problem = problem_of_attention(flash, shape, device=device, dtype=dtype)
        if problem is None:
            seconds = {size: seconds_of_both(triton, flash, size, shape, device, dtype) for size in sizes}
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        _wait_for(device)  # an error of the device that stays is raised here again
        problem = problem.split("\n", 1)[0]
        logger.warning("Triton computes the attention of prompts, because that of torch cannot be used: %s", problem)
        return Trial(NOTHING_GATHERED, problem)
    shown = (
        f"{size.num_queries} over {size.num_keys} keys: {ours * 1e3:.3f} and {theirs * 1e3:.3f}"
        for size, (ours, theirs) in seconds.items()
    )
    logger.info("attention of prompts, milliseconds of Triton and of torch: %s", "; ".join(shown))
    return Trial({size: theirs < ours * (1 - LEAST_GAIN) for size, (ours, theirs) in seconds.items()})


def queries_of_chunk(kernels: CudaKernels, size: ChunkSize, blocks: torch.Tensor) -> PagedQueries:
    """A chunk alone. ``blocks``: its block table, int32."""
    num_queries, num_keys = size
    tiles = [(0, first) for first in range(0, num_queries, kernels.queries_per_tile[1])]
    is_gathered = kernels.gathers(*size)

    def integers(values: object, columns: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=blocks.device).view(-1, columns)

    return PagedQueries(
        sequences=integers([0, num_queries, num_keys, 0], 4),
        block_tables=blocks,
        short_tiles=integers([], 2),
        long_tiles=integers([] if is_gathered else tiles, 2),
        gathered=(GatheredQueries(0, num_queries, num_keys, 0),) if is_gathered else (),
    )


def seconds_of_both(
    triton: CudaKernels,
    flash: CudaKernels,
    size: ChunkSize,
    shape: ModelShape,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """The least seconds of a call, in turns.

    Raises:
        ValueError: they differ. The check against the reference has only small chunks, and torch has other kernels for
            large ones.
    """
    heads = shape.num_heads + 2 * shape.num_kv_heads
    num_blocks = -(-size.num_keys // BLOCK_SIZE)
    qkv = torch.randn(size.num_queries, heads, shape.head_dim, dtype=dtype, device=device)
    cache = KvCache(
        torch.randn(2 * shape.num_kv_heads, num_blocks * BLOCK_SIZE, shape.head_dim, dtype=dtype, device=device)
    )
    blocks = torch.randperm(num_blocks).int().to(device)
    both = [(kernels, queries_of_chunk(kernels, size, blocks)) for kernels in (triton, flash)]
    times: list[list[float]] = [[], []]
    expected, found = (  # the first calls compile
        kernels.attend(qkv, cache, queries, shape.head_dim**-0.5, shape.window).float() for kernels, queries in both
    )
    error = float((found - expected).norm() / expected.norm())
    if not error <= NORM_BOUND:
        raise ValueError(
            f"for {size.num_queries} tokens over {size.num_keys} keys it differs from Triton's by {error:.3g}"
        )
    for _ in range(TRIAL_ROUNDS):
        for (kernels, queries), seconds in zip(both, times, strict=True):
            _wait_for(device)
            began = time.perf_counter()
            for _ in range(CALLS):
                kernels.attend(qkv, cache, queries, shape.head_dim**-0.5, shape.window)
            _wait_for(device)
            seconds.append((time.perf_counter() - began) / CALLS)
    ours, theirs = map(min, times)
    return ours, theirs


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
