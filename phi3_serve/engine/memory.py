"""How many blocks and tokens an engine gets, from the available memory. No tensors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import psutil
import torch

from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype, bytes_of_head
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.step_budget import MIN_TOKENS
from phi3_serve.engine.weights import head_dim
from phi3_serve.errors import MemoryFull

GPU_TOKEN_BUDGET = 2048
RESERVED_SHARE = 0.03  # of a GPU's memory, for what the allocator loses in gaps and for other processes
ADAPTER_SHARE = 0.03  # of a GPU's memory, for adapters; 47 of rank 16 for mini on a GPU with 80 GB
CPU_SHARE = 0.3  # of the available memory
MAX_CONTEXTS = 64  # on a CPU, more requests of full length at once do not raise throughput


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """The sizes of one engine."""

    num_blocks: int  # of the key-value cache
    token_budget: int  # maximum tokens in one step
    max_rows: int  # maximum sequences in one step
    prefix_cache: bool = True
    adapter_bytes: int = 0  # for adapters on a GPU; they are allocated for the first adapter
    kv_cache_dtype: KvCacheDtype = "auto"  # that the key-value cache is stored in


@dataclass(frozen=True, slots=True)
class FittingSizes:
    """Wanted instead of ``EngineSizes``: the largest sizes that fit into the memory."""

    max_blocks: int | None = None  # None: no limit but the memory
    prefix_cache: bool = True
    adapter_bytes: int | None = None  # of a GPU for adapters; None: ``ADAPTER_SHARE`` of its memory, or nothing
    kv_cache_dtype: KvCacheDtype = "auto"  # that the key-value cache is stored in
    gpu_share: float = 1.0  # of the memory of a GPU; the rest is for other processes that may start later

    def limited(self, num_blocks: int) -> int:
        """``num_blocks``, but at most ``max_blocks``."""
        return num_blocks if self.max_blocks is None else min(num_blocks, self.max_blocks)


def sizes_on_cpu(config: Any, dtype: torch.dtype, wanted: FittingSizes) -> EngineSizes:
    """The sizes of an engine that computes in ``dtype``, from the available memory of this machine.

    Raises:
        MemoryFull: not even one block of the cache fits.
    """
    free = psutil.virtual_memory().available * CPU_SHARE
    tokens = int(free // (block_bytes(config, dtype, wanted.kv_cache_dtype) // BLOCK_SIZE))
    num_blocks = min(tokens, MAX_CONTEXTS * config.max_position_embeddings) // BLOCK_SIZE
    if not num_blocks:
        raise MemoryFull(f"beside the weights, {free / 1e6:.1f} MB of memory are left for the key-value cache")
    return EngineSizes(
        num_blocks=wanted.limited(num_blocks),
        token_budget=128 if dtype == torch.float32 else 256,
        max_rows=MAX_ROWS["cpu"],
        prefix_cache=wanted.prefix_cache,
        kv_cache_dtype=wanted.kv_cache_dtype,
    )


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of a GPU on which the weights are loaded and the key-value cache is not."""

    total: int
    free: int
    step: int  # most that a step takes, beside the weights and the cache
    graphs: int  # most that the graphs of all steps without adapters keep
    own: int = 0  # that this process has taken: the weights, and what CUDA takes by itself

    def of_share(self, share: float) -> Self:
        """What of it a process may take that has ``share`` of the GPU, whether or not others have taken theirs."""
        if share >= 1:
            return self
        total = int(self.total * share)
        return replace(self, total=total, free=min(self.free, total - self.own))

    def left(self, adapters: int) -> int:
        """What the cache can have beside ``adapters`` bytes for adapters; negative if the steps alone do not fit.

        Steps with adapters have graphs of their own. They are captured later. The same memory is kept for them, which
        is more than they take, because none of them is of a prompt.
        """
        graphs = 2 * self.graphs if adapters else self.graphs
        return self.free - self.step - graphs - adapters - int(self.total * RESERVED_SHARE)


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
        if memory is not None:
            sizes = _sizes(memory.of_share(wanted.gpu_share), budget, bytes_per_block, wanted)
            if sizes is not None:
                return sizes
        budget //= 2
    raise MemoryFull(_too_small(memory, bytes_per_block, wanted))


def _sizes(memory: GpuMemory, budget: int, bytes_per_block: int, wanted: FittingSizes) -> EngineSizes | None:
    """The sizes with the token budget ``budget``; None if the cache would hold less than one step."""
    for adapters in _adapter_bytes(memory, wanted):
        if (num_blocks := memory.left(adapters) // bytes_per_block) * BLOCK_SIZE >= budget:
            return EngineSizes(
                num_blocks=wanted.limited(num_blocks),
                token_budget=budget,
                max_rows=MAX_ROWS["cuda"],
                prefix_cache=wanted.prefix_cache,
                adapter_bytes=adapters,
                kv_cache_dtype=wanted.kv_cache_dtype,
            )
    return None


def _adapter_bytes(memory: GpuMemory, wanted: FittingSizes) -> tuple[int, ...]:
    """What to try for adapters. Nobody may want any, so they do not make steps smaller unless it was asked for."""
    if wanted.adapter_bytes is not None:
        return (wanted.adapter_bytes,)
    return int(memory.total * ADAPTER_SHARE), 0


def _too_small(memory: GpuMemory | None, bytes_per_block: int, wanted: FittingSizes) -> str:
    """Why ``memory`` of the whole GPU is not enough."""
    if memory is None:
        return f"the GPU has no memory for a step of {MIN_TOKENS} tokens beside the weights"
    adapters = wanted.adapter_bytes or 0
    allowed = memory.of_share(wanted.gpu_share)
    of_steps = allowed.free - allowed.left(adapters)
    of_keys = MIN_TOKENS // BLOCK_SIZE * bytes_per_block
    for_adapters = f", {adapters / 1e9:.2f} GB for adapters" if adapters else ""
    needed = (
        f"a step of {MIN_TOKENS} tokens, the graphs{for_adapters} and a reserve take {of_steps / 1e9:.2f} GB, and the "
        f"keys of as many tokens {of_keys / 1e9:.2f} GB"
    )
    if allowed.free == memory.free:  # the share is not what limits
        return f"beside the weights, the GPU has {memory.free / 1e9:.2f} GB free; {needed}"
    return (
        f"num_gpus is {wanted.gpu_share:g}, which is {allowed.total / 1e9:.2f} GB of the GPU; the weights and CUDA "
        f"take {memory.own / 1e9:.2f} GB; {needed}{_least_share(memory, adapters, of_keys)}"
    )


def _least_share(memory: GpuMemory, adapters: int, of_keys: int) -> str:
    """The least num_gpus with which a step fits, if the GPU has as much left."""
    shares = (hundredths / 100 for hundredths in range(1, 101))
    least = next((share for share in shares if memory.of_share(share).left(adapters) >= of_keys), None)
    return "" if least is None else f"; num_gpus must be at least {least:g}"


def block_bytes(config: Any, dtype: torch.dtype, kv_cache_dtype: KvCacheDtype = "auto") -> int:
    """Bytes of the keys and values of one block in all layers, with their scales; ``dtype``: the model computes in."""
    of_head = bytes_of_head(head_dim(config), dtype, kv_cache_dtype)
    return 2 * int(config.num_hidden_layers) * int(config.num_key_value_heads) * of_head * BLOCK_SIZE
