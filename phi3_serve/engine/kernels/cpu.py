"""The operations between the linear layers as kernels of our own, for a CPU.

The kernels are called with addresses, so types and contiguity are checked here; shapes go along as they are.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.kernels.library import MAX_DIMENSIONS, SUFFIXES, kernels
from phi3_serve.engine.kernels.reference import Operations, Reader, Row


def operations_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Operations:
    """The fastest operations there are for a model."""
    if device.type != "cpu" or dtype not in SUFFIXES or head_dim > MAX_DIMENSIONS:
        return Operations()
    library = kernels()
    return Operations() if library is None else NativeOperations(library, dtype)


class NativeOperations(Operations):
    """The operations as kernels; see ``Operations``."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._dtype = dtype
        suffix = SUFFIXES[dtype]
        self._add_rms_norm = getattr(library, f"add_rms_norm_{suffix}")
        self._silu_product = getattr(library, f"silu_product_{suffix}")
        self._rotate_and_store = getattr(library, f"rotate_and_store_{suffix}")
        self._attend = getattr(library, f"attend_{suffix}")

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See ``Operations``."""
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
        """See ``Operations``."""
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

    def reader(self, rows: list[Row], like: Tensor) -> Reader:
        """See ``Operations``."""
        self._check(like)
        return _KernelReader(rows, self._attend)

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """See ``Operations``."""
        self._check(gate_up)
        rows, width = len(gate_up), gate_up.shape[1] // 2
        product = gate_up.new_empty(rows, width)
        self._silu_product(gate_up.data_ptr(), product.data_ptr(), rows, width, torch.get_num_threads())
        return product

    def _check(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.dtype != self._dtype or not tensor.is_contiguous():
                raise TypeError(f"the kernels want contiguous {self._dtype}, not {tensor.dtype} {tensor.stride()}")


class _KernelReader:
    def __init__(self, rows: list[Row], attend: "ctypes._NamedFuncPointer") -> None:
        self._attend = attend
        self._rows = rows  # whose tables must stay where they are
        self._described = np.array([(r.query, r.table.buffer_info()[0], r.first, r.end) for r in rows], dtype=np.int64)
        self._address = self._described.ctypes.data
        self._longest = max(row.end - row.first for row in rows)
        self._num_threads = torch.get_num_threads()
        self._scratch = torch.empty(self._num_threads * self._longest)

    def attend(self, query: Tensor, cache: Tensor, output: Tensor, scale: float) -> None:
        """See ``Reader``."""
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
