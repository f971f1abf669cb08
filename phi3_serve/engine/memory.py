"""How many blocks and tokens an engine gets, from the available memory."""

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from phi3_serve.core import MAX_ROWS
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

GPU_SHARE = 0.9  # of the memory that is free after the weights are loaded
CPU_SHARE = 0.3  # of the available memory
MAX_CONTEXTS = 64  # on a CPU, more requests of full length at once do not raise throughput


@dataclass(frozen=True, slots=True)
class EngineSizes:
    """The sizes of one engine."""

    num_blocks: int  # of the key-value cache
    token_budget: int  # maximum tokens in one step
    max_rows: int  # maximum sequences in one step
    prefix_cache: bool = True

    @classmethod
    def fitting(cls, model: Any, cache_dtype: torch.dtype) -> "EngineSizes":
        """Sizes for ``model`` on its device."""
        on_gpu = model.device.type == "cuda"
        free = torch.cuda.mem_get_info()[0] * GPU_SHARE if on_gpu else psutil.virtual_memory().available * CPU_SHARE
        context: int = model.config.max_position_embeddings
        tokens = int(free // (block_bytes(model.config, cache_dtype) // BLOCK_SIZE))
        if not on_gpu:
            tokens = min(tokens, MAX_CONTEXTS * context)
        num_blocks = max(1, tokens // BLOCK_SIZE)
        if on_gpu:
            return cls(num_blocks=num_blocks, token_budget=2048, max_rows=MAX_ROWS["cuda"])
        token_budget = 128 if cache_dtype == torch.float32 else 256
        return cls(num_blocks=num_blocks, token_budget=token_budget, max_rows=MAX_ROWS["cpu"])


def block_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one block in all layers."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return int(values * dtype.itemsize * BLOCK_SIZE)
