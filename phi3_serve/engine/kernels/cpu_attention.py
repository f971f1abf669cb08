"""The attention kernel of a CPU, ``csrc/attention.h``, over tiles of queries that are planned once a step.

A query's result has the same bits whatever else is in its tile, its chunk and the step, if all numbers are finite.
"""

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import AttentionRow
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kvcache.chunk import Chunk

MAX_ROWS = 64  # of a tile; a row is one head of one query, and rows with the same keys share the loads of them
SEGMENT = 64  # keys; csrc/attention.h has the same constant


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries of one sequence at adjacent positions, in adjacent rows of the batch."""

    row: int  # of the first query in the batch
    block_table: "array[int]"
    position: int  # of the first query
    count: int
    window: int  # how many keys a query sees, its own included

    @classmethod
    def of_row(cls, row: AttentionRow) -> "Queries":
        """A single query."""
        return cls(row.query, row.block_table, row.end - 1, 1, row.end - row.first)


class QueryTiles:
    """``contract.RowAttention`` for any number of queries of each sequence."""

    def __init__(self, queries: Sequence[Queries], attend: "ctypes._NamedFuncPointer") -> None:
        """``attend``: of the C++ library, for the dtypes of the queries and of the cache."""
        self._attend = attend
        self._queries = queries  # keeps the block tables, whose addresses are passed, in place
        self._num_threads = torch.get_num_threads()
        self._planned_for = (0, 0)  # query heads that share keys, and the dimension of a head
        self._tiles = np.empty((0, 5), dtype=np.int64)
        self._scratch = torch.empty(0)

    def attend(self, query: Tensor, cache: KvCache, output: Tensor, scale: float) -> None:
        """See ``contract.RowAttention``."""
        _, heads, dim = query.shape
        shape = (heads // cache.num_kv_heads, dim)
        if shape != self._planned_for:  # all layers have the same
            self._plan(*shape)
            self._planned_for = shape
        self._attend(
            self._tiles.ctypes.data,
            len(self._tiles),
            query.data_ptr(),
            query.stride(0),
            *cache_addresses(cache),
            cache.values.stride(0),
            output.data_ptr(),
            heads,
            cache.num_kv_heads,
            dim,
            scale,
            self._scratch.data_ptr(),
            self._scratch.shape[1],
            self._num_threads,
        )

    def _plan(self, group: int, dim: int) -> None:
        size = max(1, MAX_ROWS // group)  # queries of a tile
        tiles = [
            (q.row + at, q.block_table.buffer_info()[0], q.position + at, min(size, q.count - at), q.window)
            for q in self._queries
            for at in range(0, q.count, size)
        ]
        self._tiles = np.array(tiles, dtype=np.int64).reshape(-1, 5)
        most_rows = group * max((count for _, _, _, count, _ in tiles), default=0)
        # of each row the query, the sums, the scores of a segment, the largest score and the sum of the weights
        self._scratch = torch.empty(self._num_threads, most_rows * (2 * dim + SEGMENT + 2))


class TiledAttention:
    """``contract.AttentionPlan``: all queries of a step are left to the kernel."""

    def __init__(self, chunks: Sequence[Chunk], window: int | None, attend: "ctypes._NamedFuncPointer") -> None:
        """See ``contract.Kernels.plan_attention`` and ``QueryTiles``."""
        queries, end = [], 0
        for chunk in chunks:
            seen = chunk.end if window is None else window
            queries.append(Queries(end, chunk.sequence.block_table, chunk.start, chunk.num_tokens, seen))
            end += chunk.num_tokens
        self._num_tokens = end
        self._tiles = QueryTiles(queries, attend)

    def attend(self, qkv: Tensor, cache: KvCache, scale: float) -> Tensor:
        """See ``contract.AttentionPlan``."""
        num_heads = qkv.shape[1] - 2 * cache.num_kv_heads
        output = qkv.new_empty(len(qkv), num_heads, qkv.shape[2])
        output[self._num_tokens :] = 0
        self._tiles.attend(qkv[:, :num_heads], cache, output, scale)
        return output.flatten(1)


def cache_addresses(cache: KvCache) -> tuple[int, int]:
    """Of the values and of the scales; 0 if there are none."""
    return cache.values.data_ptr(), 0 if cache.scales is None else cache.scales.data_ptr()
