"""The kernels in C++, for a CPU.

They get the addresses of the tensors. Dtypes and contiguity are checked here; shapes are passed on unchecked.
"""

import ctypes
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.kernels.chunked_attention import ChunkedAttention
from phi3_serve.engine.kernels.contract import (
    AttentionPlan,
    AttentionRow,
    PackedWeight,
    RowAttention,
    Weight,
)
from phi3_serve.engine.kernels.cpu_library import SUFFIXES, level_of
from phi3_serve.engine.kernels.quantized_panels import QuantizedPanels
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
        self._rotate_and_store = getattr(library, f"rotate_and_store_{suffix}")
        self._attend = getattr(library, f"attend_{suffix}")

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

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: Tensor) -> None:
        """See ``contract.Kernels``."""
        self._check(qkv, *rotation, cache)
        num_kv_heads = len(cache) // 2
        self._rotate_and_store(
            qkv.data_ptr(),
            rotation[0].data_ptr(),
            rotation[1].data_ptr(),
            slots.data_ptr(),
            cache.data_ptr(),
            cache.stride(0),
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

    def plan_attention(self, chunks: Sequence[Chunk], *, window: int | None, like: Tensor) -> AttentionPlan:
        """See ``contract.Kernels``."""
        self._check(like)
        return ChunkedAttention(chunks, self.of_rows, window=window, like=like)

    def of_rows(self, rows: Sequence[AttentionRow]) -> RowAttention:
        """Prepare the attention of single queries."""
        return _CpuAttention(rows, self._attend)

    def _check(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.dtype != self._dtype or not tensor.is_contiguous():
                raise TypeError(
                    f"expected contiguous {self._dtype} tensors, got {tensor.dtype} with strides {tensor.stride()}"
                )


class _CpuAttention:
    def __init__(self, rows: Sequence[AttentionRow], attend: "ctypes._NamedFuncPointer") -> None:
        self._attend = attend
        self._rows = rows  # keeps the block tables, whose addresses are passed, in place
        self._described = np.array(
            [(row.query, row.block_table.buffer_info()[0], row.first, row.end) for row in rows], dtype=np.int64
        )
        self._address = self._described.ctypes.data
        self._longest = max(row.end - row.first for row in rows)
        self._num_threads = torch.get_num_threads()
        self._scratch = torch.empty(self._num_threads * self._longest)

    def attend(self, query: Tensor, cache: Tensor, output: Tensor, scale: float) -> None:
        """See ``contract.RowAttention``."""
        self._attend(
            self._address,
            len(self._rows),
            query.data_ptr(),
            query.stride(0),
            cache.data_ptr(),
            cache.stride(0),
            output.data_ptr(),
            query.shape[1],
            len(cache) // 2,
            query.shape[2],
            scale,
            self._scratch.data_ptr(),
            self._longest,
            self._num_threads,
        )
