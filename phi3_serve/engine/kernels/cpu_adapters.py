"""The products of adapters in C++. The rows of one adapter share the reading of its matrices."""

import ctypes
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import AdaptedRows, LowRank, LowRankAdapter

# The layouts of LowRank and AdaptedGroup in csrc/adapters.h.
_LOW_RANK = np.dtype([("a", np.int64), ("b", np.int64), ("rank", np.int64), ("scaling", np.float64)])
_GROUP = np.dtype([(name, np.int64) for name in ("first_part", "end_part", "first_row", "end_row")])


class CpuAdapters:
    """Makes the plans of steps in ``dtype``."""

    def __init__(self, function: "ctypes._NamedFuncPointer", dtype: torch.dtype) -> None:
        self._function = function
        self._dtype = dtype
        self._described: WeakKeyDictionary[LowRankAdapter, Any] = WeakKeyDictionary()

    def plan(self, rows: Sequence[AdaptedRows]) -> "CpuAdapterPlan":
        """See ``contract.AdapterKernels``."""
        groups: dict[tuple[LowRankAdapter, ...], list[AdaptedRows]] = {}
        for some in rows:
            groups.setdefault(tuple(adapter for adapter, _ in some.adapters), []).append(some)
        parts = np.stack([self._describe(adapter) for adapters in groups for adapter in adapters], axis=1)
        return CpuAdapterPlan(self._function, self._dtype, groups, np.ascontiguousarray(parts))

    def _describe(self, adapter: LowRankAdapter) -> Any:
        """The changes of ``adapter``, [places] of _LOW_RANK."""
        if adapter not in self._described:
            self._described[adapter] = np.array([self._part(change) for change in adapter.changes], dtype=_LOW_RANK)
        return self._described[adapter]

    def _part(self, change: LowRank | None) -> tuple[int, int, int, float]:
        if change is None:
            return 0, 0, 0, 0.0
        for matrix in (change.a, change.b):
            if matrix.dtype != self._dtype or not matrix.is_contiguous():
                raise TypeError(f"expected contiguous matrices in {self._dtype}, got {matrix.dtype}")
        return change.a.data_ptr(), change.b.data_ptr(), change.rank, change.scaling


class CpuAdapterPlan:
    """``contract.AdapterPlan`` in C++."""

    def __init__(
        self,
        function: "ctypes._NamedFuncPointer",
        dtype: torch.dtype,
        groups: dict[tuple[LowRankAdapter, ...], list[AdaptedRows]],
        parts: Any,
    ) -> None:
        """``parts``: the adapters of all groups, one group after another, [places, adapters] of _LOW_RANK."""
        self._function = function
        self._dtype = dtype
        self._groups_of_rows = groups  # keeps the matrices, whose addresses are passed, in place
        self._parts = parts
        max_parts = max(map(len, groups))
        numbers: list[int] = []
        strengths: list[list[float]] = []
        described = []
        first_part = 0
        for adapters, ranges in groups.items():
            first_row = len(numbers)
            for some in ranges:
                numbers += range(some.first, some.end)
                of_row = [strength for _, strength in some.adapters] + [0.0] * (max_parts - len(adapters))
                strengths += [of_row] * (some.end - some.first)
            described.append((first_part, first_part + len(adapters), first_row, len(numbers)))
            first_part += len(adapters)
        self._groups = np.array(described, dtype=_GROUP)
        self._numbers = np.array(numbers, dtype=np.int64)
        self._strengths = np.array(strengths, dtype=np.float64)
        self._last_row = max(numbers)
        ranks = np.array([parts["rank"][:, first:end].sum(axis=1) for first, end, *_ in described])  # [groups, places]
        self._is_changed = [bool(ranks_of_place.any()) for ranks_of_place in ranks.T]
        stride = int(ranks.max())
        self._products = torch.empty(len(numbers) * stride)
        self._address, self._place_bytes = parts.ctypes.data, parts.strides[0]
        self._arguments = (
            self._groups.ctypes.data,
            len(self._groups),
            self._numbers.ctypes.data,
            self._strengths.ctypes.data,
            max_parts,
            self._products.data_ptr(),
            stride,
        )

    def add(self, place: int, x: Tensor, output: Tensor) -> None:
        """See ``contract.AdapterPlan``."""
        if not self._is_changed[place]:
            return
        for tensor in (x, output):
            if tensor.dtype != self._dtype or not tensor.is_contiguous() or len(tensor) <= self._last_row:
                raise TypeError(
                    f"expected more than {self._last_row} rows in {self._dtype}, contiguous; "
                    f"got {list(tensor.shape)} in {tensor.dtype}"
                )
        self._function(
            self._address + place * self._place_bytes,
            *self._arguments,
            x.data_ptr(),
            x.shape[1],
            output.data_ptr(),
            output.shape[1],
            torch.get_num_threads(),
        )
