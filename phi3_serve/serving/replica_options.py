"""What one replica is started with.

The options hold settings of the replica's own model only, because a change of them restarts the replica (``versions``).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from phi3_serve import __version__
from phi3_serve.config.adapter import AdapterConfig
from phi3_serve.config.limits import LimitsConfig, QueueLimitsConfig
from phi3_serve.config.model import KvCacheDtype, ModelConfig
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """Which model a replica loads, where, and under which limits. Ray pickles this for the replica's process."""

    name: str  # as clients see it
    source: str  # Hub repository id, checkpoint directory or GGUF file
    revision: str | None
    device: Literal["cpu", "cuda"]
    dtype: str
    quantization: str
    num_threads: int  # of torch
    stuck_after_s: float
    limits: QueueLimitsConfig
    defaults: GenerationParameters
    resources: Mapping[str, float]  # that it reserves
    file: str | None = None  # the GGUF file of a source with several
    kv_cache_dtype: KvCacheDtype = "auto"
    required: bool = False  # whether the replica must not run without its model
    reload: str | None = None  # a new value restarts the replica
    merged_adapters: tuple[AdapterConfig, ...] = ()  # into the weights
    adapter_memory_bytes: int = 2 * 2**30  # of the main memory, for adapters that requests name
    gpu_adapter_memory_bytes: int | None = None  # for those of running requests; None: a share of the GPU
    cuda_graphs: bool = True  # whether steps may be replayed
    flash_attention: bool = True  # whether torch may compute the attention of prompts

    @property
    def gpu_share(self) -> float:
        """Of the memory of a GPU, which the replica may take."""
        return min(1.0, self.resources.get("GPU") or 1.0)

    @property
    def version(self) -> str:
        """The same for all replicas that start in the same way."""
        return hashlib.sha256(f"{__version__} {self!r}".encode()).hexdigest()

    @classmethod
    def from_config(cls, model: ModelConfig, placement: Placement, limits: LimitsConfig) -> Self:
        """The options of every replica of ``model``."""
        return cls(
            name=model.served_name,
            source=model.checkpoint,
            revision=model.checkpoint_revision,
            file=model.file,
            device=placement.device,
            resources=placement.resources,
            dtype=model.dtype,
            quantization=model.quantization,
            kv_cache_dtype=model.kv_cache_dtype,
            num_threads=max(1, int(placement.num_cpus)),
            stuck_after_s=model.health.stuck_after_s,
            limits=limits.of_queue,
            defaults=model.defaults,
            required=model.required,
            reload=model.reload,
            merged_adapters=model.merged_adapters,
            adapter_memory_bytes=model.adapter_memory_bytes,
            gpu_adapter_memory_bytes=model.gpu_adapter_memory_bytes,
            cuda_graphs=model.cuda_graphs,
            flash_attention=model.flash_attention,
        )
