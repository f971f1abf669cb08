"""The kernels in Triton, for a GPU of NVIDIA."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from phi3_serve.engine.kernels import flash_attention, triton_attention, triton_layers, triton_low_rank
from phi3_serve.engine.kernels.contract import MAX_SHORT_QUERIES, AdaptedTiles, PagedLowRank, PagedQueries
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.triton_attention import (
    AttentionConfig,
    decode_config,
    prefill_config,
    prefill_queries_per_tile,
    scratch_size,
)

AMPERE = 8  # the first number of its compute capability


class ChunkSize(NamedTuple):
    """Of a chunk of a prompt."""

    num_queries: int
    num_keys: int  # its own and those before it


NOTHING_GATHERED: Mapping[ChunkSize, bool] = MappingProxyType({})


class CudaKernels:
    """``contract.DeviceKernels`` in Triton."""

    name = "cuda"

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        dtype: torch.dtype,
        device: torch.device,
        gathered: Mapping[ChunkSize, bool] = NOTHING_GATHERED,
    ) -> None:
        """For a model with these attention heads that computes in ``dtype``.

        ``gathered``: for sizes of chunks, whether torch computes their attention. A chunk counts as the largest of
        these sizes that it has; see ``prompt_attention``.
        """
        self.replaced: Mapping[str, str] = {}
        self.gathered = gathered
        self.flash_attention = _described(gathered)
        self._num_kv_heads = num_kv_heads
        self._group = num_heads // num_kv_heads
        self._dtype = dtype
        properties = torch.cuda.get_device_properties(device)
        self._multiprocessors: int = properties.multi_processor_count
        self.is_before_ampere = properties.major < AMPERE
        self._queries_per_short_tile = max(1, min(MAX_SHORT_QUERIES, 16 // self._group))
        queries_per_long_tile = prefill_queries_per_tile(self._group, dtype, is_before_ampere=self.is_before_ampere)
        self.queries_per_tile = (self._queries_per_short_tile, queries_per_long_tile)

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See ``contract.LayerKernels``."""
        return triton_layers.add_rms_norm(hidden, delta, weight, epsilon)

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        """See ``contract.LayerKernels``."""
        triton_layers.rotate_and_store(qkv, rotation, slots, cache)

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """See ``contract.LayerKernels``."""
        return triton_layers.silu_product(gate_up)

    def gathers(self, num_queries: int, num_keys: int) -> bool:
        """See ``contract.DeviceKernels``."""
        sizes = [size for size in self.gathered if size.num_queries <= num_queries and size.num_keys <= num_keys]
        return bool(sizes) and self.gathered[max(sizes)]

    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        """See ``contract.DeviceKernels``."""
        num_heads = qkv.shape[1] - 2 * cache.num_kv_heads
        tokens, _, dim = qkv.shape
        output = qkv.new_empty(tokens, num_heads, dim)
        for tiles, config in (
            (queries.short_tiles, self._short_config(queries.short_tiles.shape[0])),
            (queries.long_tiles, self._long_config(queries.long_tiles.shape[0])),
        ):
            if num_tiles := tiles.shape[0]:
                triton_attention.attend(
                    qkv[:, :num_heads],
                    cache,
                    output,
                    queries.sequences,
                    tiles,
                    queries.block_tables,
                    scale=scale,
                    window=window,
                    config=config,
                    scratch=qkv.new_empty(scratch_size(num_tiles, num_heads, dim, config), dtype=torch.float32),
                )
        for chunk in queries.gathered:
            flash_attention.attend(
                qkv[:, :num_heads], cache, output, queries.block_tables, chunk, scale=scale, window=window
            )
        return output.flatten(1)

    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        """See ``contract.DeviceKernels``."""
        triton_low_rank.add_low_rank(x, output, change, tiles)

    def _short_config(self, num_tiles: int) -> AttentionConfig:
        return decode_config(
            num_tiles,
            self._num_kv_heads,
            self._group,
            self._dtype,
            self._multiprocessors,
            queries_per_tile=self._queries_per_short_tile,
        )

    def _long_config(self, num_tiles: int) -> AttentionConfig:
        return prefill_config(
            num_tiles,
            self._num_kv_heads,
            self._group,
            self._dtype,
            self._multiprocessors,
            is_before_ampere=self.is_before_ampere,
        )


def _described(gathered: Mapping[ChunkSize, bool]) -> str:
    sizes = [size for size, is_gathered in gathered.items() if is_gathered]
    if not sizes:
        return ""
    num_queries, num_keys = min(sizes)
    return f"from {num_queries} tokens over {num_keys} keys"
