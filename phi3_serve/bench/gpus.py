"""GPUs as their makers state them, and what phi3-serve gets out of them."""

from dataclasses import dataclass

from phi3_serve.catalogue import Variant

KEPT_FREE = 0.03  # of the memory, by the engine
STEPS_AND_GRAPHS = 2e9  # bytes; the largest step of 2,048 tokens, and CUDA graphs
# Measured on an H200 and an H100 (docs/benchmarks.md), as shares of what the maker states.
SHARE_OF_BANDWIDTH = 0.65
SHARE_OF_FLOPS = 0.5


@dataclass(frozen=True, slots=True)
class Gpu:
    """What its maker states."""

    name: str
    memory: float  # bytes
    bandwidth: float  # bytes a second
    flops: float  # operations a second in bfloat16, without sparsity

    def cache_tokens(self, model: Variant) -> int:
        """Tokens that the key-value cache holds in bfloat16; negative if the weights do not fit."""
        left = self.memory * (1 - KEPT_FREE) - model.weight_bytes() - STEPS_AND_GRAPHS
        return int(left / model.kv_bytes_per_token())


GPUS = (
    Gpu("L4", 24e9, 300e9, 121e12),
    Gpu("A10", 24e9, 600e9, 125e12),
    Gpu("L40S", 48e9, 864e9, 362e12),
    Gpu("A100 40 GB", 40e9, 1555e9, 312e12),
    Gpu("A100 80 GB", 80e9, 2039e9, 312e12),
    Gpu("H100", 80e9, 3350e9, 989e12),
    Gpu("H200", 141e9, 4800e9, 989e12),
)


def gpu(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        KeyError: there is none.
    """
    return {found.name: found for found in GPUS}[name]
