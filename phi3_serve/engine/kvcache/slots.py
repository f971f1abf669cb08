"""From positions in a sequence to slots of the cache."""

from array import array
from typing import Any

import numpy as np

from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE


def cache_slots(block_table: "array[int]", first: int, end: int) -> Any:
    """The cache slots of the positions [first, end) of a sequence, as an int64 array."""
    numbers = np.frombuffer(block_table, dtype=np.int32)[first // BLOCK_SIZE : -(-end // BLOCK_SIZE)].astype(np.int64)
    slots = numbers[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)
    return slots.reshape(-1)[first % BLOCK_SIZE :][: end - first]
