"""How many blocks and tokens an engine gets, from the available memory. No tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from phi3_serve.core import MAX_ROWS
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.step_budget import MIN_TOKENS
from phi3_serve.engine.weights import head_dim
from phi3_serve.errors import MemoryFull

GPU_TOKEN_BUDGET = 2048
RESERVED_SHARE = 0.03  # of a GPU's memory, for what the allocator loses in gaps and for other processes
CPU_SHARE = 0.3  # of the available memory
MAX_CONTEXTS = 64  # on a CPU, more requests of full length at once do not raise throughput


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """The sizes of one engine."""

    num_blocks: int  # of the key-value cache
    token_budget: int  # maximum tokens in one step
    max_rows: int  # maximum sequences in one step
    prefix_cache: bool = True


@dataclass(frozen=True, slots=True)
class FittingSizes:
    """Wanted instead of ``EngineSizes``: the largest sizes that fit into the memory."""

    max_blocks: int | None = None  # None: no limit but the memory
    prefix_cache: bool = True

    def limited(self, num_blocks: int) -> int:
        """``num_blocks``, but at most ``max_blocks``."""
        return num_blocks if self.max_blocks is None else min(num_blocks, self.max_blocks)


def sizes_on_cpu(config: Any, dtype: torch.dtype, wanted: FittingSizes) -> EngineSizes:
    """The sizes of an engine whose key-value cache has ``dtype``, from the available memory of this machine.

    Raises:
        MemoryFull: not even one block of the cache fits.
    """
    free = psutil.virtual_memory().available * CPU_SHARE
    tokens = int(free // (block_bytes(config, dtype) // BLOCK_SIZE))
    num_blocks = min(tokens, MAX_CONTEXTS * config.max_position_embeddings) // BLOCK_SIZE
    if not num_blocks:
        raise MemoryFull(f"beside the weights, {free / 1e6:.1f} MB of memory are left for the key-value cache")
    return EngineSizes(
        num_blocks=wanted.limited(num_blocks),
        token_budget=128 if dtype == torch.float32 else 256,
        max_rows=MAX_ROWS["cpu"],
        prefix_cache=wanted.prefix_cache,
    )


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of a GPU on which the weights are loaded and the key-value cache is not."""

    total: int
    free: int
    step: int  # most that a step takes, beside the weights and the cache
    graphs: int  # most that the graphs of all decode steps keep

    @property
    def left(self) -> int:
        """What the cache can have; negative if the steps alone do not fit."""
        return self.free - self.step - self.graphs - int(self.total * RESERVED_SHARE)


def sizes_on_gpu(measure: Callable[[int], GpuMemory | None], bytes_per_block: int, wanted: FittingSizes) -> EngineSizes:
    """The largest token budget with which the cache holds at least one step, and the blocks that then fit.

    Args:
        measure: runs the largest step of a token budget; None if the GPU has no memory for it.
        bytes_per_block: see ``block_bytes``.
        wanted: limits.

    Raises:
        MemoryFull: not even small steps fit beside the weights.
    """
    budget, memory = GPU_TOKEN_BUDGET, None
    while budget >= MIN_TOKENS:
        memory = measure(budget)
        if memory is not None and (num_blocks := memory.left // bytes_per_block) * BLOCK_SIZE >= budget:
            return EngineSizes(
                num_blocks=wanted.limited(num_blocks),
                token_budget=budget,
                max_rows=MAX_ROWS["cuda"],
                prefix_cache=wanted.prefix_cache,
            )
        budget //= 2
    raise MemoryFull(_too_small(memory, bytes_per_block))


def _too_small(memory: GpuMemory | None, bytes_per_block: int) -> str:
    if memory is None:
        return f"the GPU has no memory for a step of {MIN_TOKENS} tokens beside the weights"
    return (
        f"beside the weights, the GPU has {memory.free / 1e9:.2f} GB free; a step of {MIN_TOKENS} tokens, the graphs "
        f"and a reserve take {(memory.free - memory.left) / 1e9:.2f} GB, and the keys of as many tokens "
        f"{MIN_TOKENS // BLOCK_SIZE * bytes_per_block / 1e9:.2f} GB"
    )


def block_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one block in all layers."""
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config)
    return int(values * dtype.itemsize * BLOCK_SIZE)
