"""What an engine runs on, its limits and its load."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# Maximum sequences in one step of an engine. With more, throughput hardly grows on a CPU, and first tokens come later.
MAX_ROWS: Mapping[Literal["cpu", "cuda"], int] = {"cpu": 128, "cuda": 256}


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of an engine's queue."""

    requests: int = 64
    tokens: int = 2**18  # of all waiting prompts together; the first waiting request may exceed this


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in an engine, and blocks of its key-value cache."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_blocks_used: int
    num_preempted: int = 0  # of the waiting requests, those that have run before


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine runs on. While the engine lives, nothing but ``replaced_kernels`` changes."""

    device: str  # the name of the GPU or of the processor
    compute_capability: str | None  # of a GPU of NVIDIA, for example 9.0
    dtype: str  # that it computes in
    weight_dtype: str  # of the weights that are not rounded; on a CPU they may have fewer bits than ``dtype``
    quantization: str  # of the weights: none, int8, int4 or fp8
    kv_cache_dtype: str  # that keys and values are stored in: int8, fp8, or the dtype
    kernels: str  # the implementation, for example cuda
    cuda_graphs: bool = False  # whether steps are replayed as CUDA graphs
    flash_attention: str = (
        ""  # the chunks of prompts whose attention is torch's FlashAttention-2, in words; empty: none
    )
    replaced_kernels: Mapping[str, str]  # those that slower ones replace, and the reasons
    cache_tokens: int  # that the key-value cache holds
    cache_bytes: int  # of the key-value cache
    weight_bytes: int
    weight_format: str  # how the checkpoint stores the weights, in words; empty if they are of no checkpoint
