"""The kernels in C++, for a CPU.

They get the addresses of the tensors. Dtypes and contiguity are checked here; shapes are passed on unchecked.
"""

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from phi3_serve.engine.kernels.chunked_attention import ChunkedAttention
from phi3_serve.engine.kernels.contract import (
    AdaptedRows,
    AdapterPlan,
    AttentionPlan,
    AttentionRow,
    Fp8Weight,
    PackedWeight,
    RowAttention,
    Weight,
)
from phi3_serve.engine.kernels.cpu_adapters import CpuAdapters
from phi3_serve.engine.kernels.cpu_attention import Queries, QueryTiles, TiledAttention, cache_addresses
from phi3_serve.engine.kernels.cpu_library import SUFFIXES, level_of
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.quantized_panels import QuantizedPanels
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kvcache.chunk import Chunk


class CpuKernels:
    """``contract.Kernels`` in C++."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.name = f"cpu ({level_of(library)})"
        self.replaced: Mapping[str, str] = {}
        self._library = library
        self._dtype = dtype
        suffix = SUFFIXES[dtype]
        self._add_rms_norm = getattr(library, f"add_rms_norm_{suffix}")
        self._silu_product = getattr(library, f"silu_product_{suffix}")
        # By the dtype of the cache.
        suffixes = {dtype: suffix, torch.int8: f"int8_{suffix}"}
        self._rotate_and_store = {of: getattr(library, f"rotate_and_store_{name}") for of, name in suffixes.items()}
        self._attend = {of: getattr(library, f"attend_{name}") for of, name in suffixes.items()}
        self._adapters = CpuAdapters(getattr(library, f"add_low_rank_{suffix}"), dtype)

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See ``contract.Kernels``."""
        self._check(hidden, delta, weight)
        normed = torch.empty_like(hidden)
        self._add_rms_norm(
            hidden.data_ptr(),
            delta.data_ptr(),
            weight.data_ptr(),
            normed.data_ptr(),
            *hidden.shape,
            epsilon,
            torch.get_num_threads(),
        )
        return normed

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        """See ``contract.Kernels``."""
        self._check(qkv, *rotation)
        self._check_cache(cache)
        num_kv_heads = cache.num_kv_heads
        self._rotate_and_store[cache.values.dtype](
            qkv.data_ptr(),
            rotation[0].data_ptr(),
            rotation[1].data_ptr(),
            slots.data_ptr(),
            *cache_addresses(cache),
            cache.values.stride(0),
            len(slots),
            qkv.shape[1] - 2 * num_kv_heads,
            num_kv_heads,
            qkv.shape[2],
            rotation[0].shape[-1],
            torch.get_num_threads(),
        )

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """See ``contract.Kernels``."""
        self._check(gate_up)
        rows, width = len(gate_up), gate_up.shape[1] // 2
        product = gate_up.new_empty(rows, width)
        self._silu_product(gate_up.data_ptr(), product.data_ptr(), rows, width, torch.get_num_threads())
        return product

    def pack(self, weight: Weight) -> PackedWeight:
        """See ``contract.Kernels``."""
        return QuantizedPanels(weight, self._library)

    def pack_fp8(self, weight: Fp8Weight) -> PackedWeight:
        """See ``contract.Kernels``. No processor multiplies float8, so models on a CPU are not loaded in it."""
        return ReferenceKernels().pack_fp8(weight)

    def plan_attention(self, chunks: Sequence[Chunk], *, window: int | None, cache: KvCache) -> AttentionPlan:
        """See ``contract.Kernels``."""
        self._check_cache(cache)
        if self._dtype == torch.float32 or cache.scales is not None:
            return TiledAttention(chunks, window, self._attend[cache.values.dtype])
        # for long chunks in bfloat16, torch has faster instructions
        return ChunkedAttention(chunks, lambda rows: self.of_rows(rows, cache), window=window, cache=cache)

    def plan_adapters(self, rows: Sequence[AdaptedRows]) -> AdapterPlan:
        """See ``contract.Kernels``."""
        return self._adapters.plan(rows)

    def of_rows(self, rows: Sequence[AttentionRow], cache: KvCache) -> RowAttention:
        """Prepare the attention of single queries over caches with the dtype of ``cache``."""
        return QueryTiles([Queries.of_row(row) for row in rows], self._attend[cache.values.dtype])

    def _check_cache(self, cache: KvCache) -> None:
        values, scales = cache.values, cache.scales
        fits = values.dtype == self._dtype if scales is None else values.dtype == torch.int8
        if not fits or not values.is_contiguous() or not (scales is None or scales.is_contiguous()):
            raise TypeError(
                f"expected a contiguous cache in {self._dtype}, or in torch.int8 with scales, got {values.dtype} with "
                f"strides {values.stride()}"
            )

    def _check(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.dtype != self._dtype or not tensor.is_contiguous():
                raise TypeError(
                    f"expected contiguous {self._dtype} tensors, got {tensor.dtype} with strides {tensor.stride()}"
                )
