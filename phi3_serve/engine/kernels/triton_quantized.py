"""Linear layers in Triton whose weights have 8 or 4 bits.

One row and few rows are bound by the memory of the weights: they become numbers in registers. For one row, products and
sums need no tensor cores. Many rows are bound by arithmetic: the weight is dequantised, and torch multiplies. All three
round each weight to the dtype of the input, so the number of rows changes nothing but the order of a sum, which is
float32.

A group has the inputs of one step of a ``BlockedWeight``, or ``GROUP`` of a ``QuantizedWeight``. In 4 bits the first
half of a group has the low bits of its bytes, and the second half the high ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear, pad

from phi3_serve.engine.kernels.contract import (
    GROUP,
    Bits,
    BlockedWeight,
    Fp8Weight,
    PackedWeight,
    QuantizedWeight,
    Weight,
)
from phi3_serve.engine.kernels.launch_sizes import cdiv, next_power_of_2
from phi3_serve.engine.kernels.triton_fp8 import ScaledWeight

MAX_FEW_ROWS = 128  # not measured: with more, a tile of rows reads the weights as often as dequantising them costs
MAX_TILE_ROWS = 64
MIN_TILE = 16  # the smallest side of a matrix product in Triton
_RAISED_BY = 8  # what is added to a weight of 4 bits below 0


@dataclass(frozen=True, slots=True)
class QuantizedConfig:
    """The sizes of one program."""

    block_n: int  # outputs
    block_bytes: int  # of each output in one iteration, at least 32, a power of two
    num_warps: int
    num_stages: int


# Not measured: no GPU was at hand. tests/gpu/time_linear.py times others.
ROW_CONFIG = QuantizedConfig(block_n=8, block_bytes=256, num_warps=4, num_stages=4)
TILE_CONFIG = QuantizedConfig(block_n=32, block_bytes=64, num_warps=4, num_stages=4)
UNPACKING_CONFIG = QuantizedConfig(block_n=16, block_bytes=128, num_warps=4, num_stages=1)


class TritonWeights:
    """``contract.WeightKernels`` in Triton."""

    name = "cuda"

    def pack(self, weight: Weight) -> PackedWeight:
        """See ``contract.WeightKernels``. It stays on its device."""
        return TritonWeight(weight)

    def pack_fp8(self, weight: Fp8Weight) -> PackedWeight:
        """See ``contract.WeightKernels``. It stays on its device."""
        return ScaledWeight(weight)


class TritonWeight:
    """``contract.PackedWeight`` for the kernels in Triton."""

    def __init__(self, weight: Weight) -> None:
        self._bits: Bits = weight.bits
        self._outputs, self._inputs = weight.values.shape
        self._group = GROUP if isinstance(weight, QuantizedWeight) else weight.group
        self._raised_by = _RAISED_BY if isinstance(weight, QuantizedWeight) and weight.bits == 4 else 0
        self._values = self._in_bytes(weight.values)
        self._scales = weight.scales.contiguous()
        self._steps: Tensor | None = None
        self._minima: Tensor | None = None
        self._minimum_steps: Tensor | None = None
        if isinstance(weight, BlockedWeight):
            self._steps = weight.steps.contiguous()
            if weight.minima is not None and weight.minimum_steps is not None:
                self._minima, self._minimum_steps = weight.minima.contiguous(), weight.minimum_steps.contiguous()

    @property
    def num_bytes(self) -> int:
        """See ``contract.PackedWeight``."""
        parts = (self._values, self._scales, self._steps, self._minima, self._minimum_steps)
        return sum(part.nbytes for part in parts if part is not None)

    def multiply(self, x: Tensor) -> Tensor:
        """See ``contract.PackedWeight``. With other numbers of rows, the order of a row's sums may differ."""
        if x.ndim != 2 or x.shape[1] != self._inputs or not x.is_contiguous():
            raise TypeError(f"expected contiguous [rows, {self._inputs}], got {list(x.shape)}")
        if len(x) > MAX_FEW_ROWS:
            return linear(x, self.dequantized(x.dtype))
        return self.multiply_row(x) if len(x) == 1 else self.multiply_rows(x)

    def multiply_row(self, x: Tensor, config: QuantizedConfig = ROW_CONFIG) -> Tensor:
        """``multiply`` for ``x`` [1, in]."""
        out = x.new_empty(1, self._outputs)
        self._launch(_multiply_row, (cdiv(self._outputs, config.block_n),), config, x, out)
        return out

    def multiply_rows(self, x: Tensor, config: QuantizedConfig = TILE_CONFIG) -> Tensor:
        """``multiply`` for few rows."""
        rows = len(x)
        out = x.new_empty(rows, self._outputs)
        if rows:
            block_m = min(MAX_TILE_ROWS, max(MIN_TILE, next_power_of_2(rows)))
            grid = (cdiv(rows, block_m), cdiv(self._outputs, config.block_n))
            self._launch(_multiply_rows, grid, config, x, out, rows=rows, BLOCK_M=block_m)
        return out

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] that all rows are multiplied by, in ``dtype``."""
        config, row_bytes = UNPACKING_CONFIG, self._values[0].nbytes
        out = torch.empty(self._outputs, self._inputs, dtype=dtype, device=self._values.device)
        grid = (cdiv(self._outputs, config.block_n), cdiv(row_bytes, config.block_bytes))
        self._launch(_dequantize, grid, config, out)
        return out

    def unpacked(self) -> Weight:
        """See ``contract.PackedWeight``."""
        values = self._values
        if self._bits == 4:
            values = torch.cat([values & 15, values >> 4], dim=2).view(torch.int8) - self._raised_by
        else:
            values = values.view(torch.int8)
        values = values.flatten(1)[:, : self._inputs]
        if self._steps is None:
            return QuantizedWeight(self._bits, values, self._scales)
        return BlockedWeight(self._bits, values, self._scales, self._steps, self._minima, self._minimum_steps)

    def _in_bytes(self, values: Tensor) -> Tensor:
        """uint8 [out, groups, bytes]; inputs are filled up to whole groups with zeros."""
        groups = pad(values + self._raised_by, (0, -self._inputs % self._group), value=self._raised_by)
        groups = groups.view(self._outputs, -1, self._group).view(torch.uint8)
        if self._bits == 8:
            return groups.contiguous()
        low, high = groups.chunk(2, dim=2)
        return low | high << 4

    def _launch(
        self, kernel: Any, grid: tuple[int, ...], config: QuantizedConfig, *tensors: Tensor, **more: int
    ) -> None:
        groups, num_bytes = self._values.shape[1:]
        absent = self._scales  # never read
        kernel[grid](
            *tensors,
            self._values,
            self._scales,
            absent if self._steps is None else self._steps,
            absent if self._minima is None else self._minima,
            absent if self._minimum_steps is None else self._minimum_steps,
            self._outputs,
            self._inputs,
            groups,
            groups // self._scales.shape[1],
            **more,
            BITS=self._bits,
            BYTES=num_bytes,
            RAISED_BY=self._raised_by,
            HAS_STEPS=self._steps is not None,
            HAS_MINIMA=self._minima is not None,
            BLOCK_N=config.block_n,
            BLOCK_G=config.block_bytes // num_bytes,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )


@triton.jit
def _multiply_row(  # type: ignore[no-untyped-def]
    x,
    out,
    values,
    scales,
    steps,
    minima,
    minimum_steps,
    outputs,
    inputs,
    groups,
    groups_of_scale,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    RAISED_BY: tl.constexpr,
    HAS_STEPS: tl.constexpr,
    HAS_MINIMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Program: BLOCK_N outputs of one row."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    dtype = x.dtype.element_ty
    total = tl.zeros((BLOCK_N, BLOCK_G, BYTES), tl.float32)
    for start in range(0, groups, BLOCK_G):
        g = start + tl.arange(0, BLOCK_G)
        low, high = _weights(
            values, scales, steps, minima, minimum_steps, n, g, outputs, groups, groups_of_scale,
            BITS, BYTES, RAISED_BY, HAS_STEPS, HAS_MINIMA,
        )  # fmt: skip
        k = g[:, None] * (BYTES * 8 // BITS) + tl.arange(0, BYTES)[None, :]
        of_low = tl.load(x + k, mask=k < inputs, other=0.0).to(tl.float32)
        total += low.to(dtype).to(tl.float32) * of_low[None, :, :]
        if BITS == 4:
            of_high = tl.load(x + k + BYTES, mask=k + BYTES < inputs, other=0.0).to(tl.float32)
            total += high.to(dtype).to(tl.float32) * of_high[None, :, :]
    tl.store(out + n, tl.sum(tl.sum(total, 2), 1).to(dtype), mask=n < outputs)


@triton.jit(do_not_specialize=["rows"])  # or some numbers of rows would be compiled while requests wait
def _multiply_rows(  # type: ignore[no-untyped-def]
    x,
    out,
    values,
    scales,
    steps,
    minima,
    minimum_steps,
    outputs,
    inputs,
    groups,
    groups_of_scale,
    rows,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    RAISED_BY: tl.constexpr,
    HAS_STEPS: tl.constexpr,
    HAS_MINIMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Program (rows, outputs): BLOCK_M rows of BLOCK_N outputs. Programs of the same outputs follow one another."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_G * BYTES)
    is_row = (m < rows)[:, None]
    rows_of_x = x + m[:, None].to(tl.int64) * inputs
    dtype = x.dtype.element_ty
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, groups, BLOCK_G):
        low, high = _weights(
            values, scales, steps, minima, minimum_steps, n, start + tl.arange(0, BLOCK_G), outputs, groups,
            groups_of_scale, BITS, BYTES, RAISED_BY, HAS_STEPS, HAS_MINIMA,
        )  # fmt: skip
        k = ((start + column // BYTES) * (BYTES * 8 // BITS) + column % BYTES)[None, :]
        of_low = tl.load(rows_of_x + k, mask=is_row & (k < inputs), other=0.0)
        low = tl.reshape(low.to(dtype), (BLOCK_N, BLOCK_G * BYTES))
        total = tl.dot(of_low, tl.trans(low), total, input_precision="ieee")
        if BITS == 4:
            of_high = tl.load(rows_of_x + k + BYTES, mask=is_row & (k + BYTES < inputs), other=0.0)
            high = tl.reshape(high.to(dtype), (BLOCK_N, BLOCK_G * BYTES))
            total = tl.dot(of_high, tl.trans(high), total, input_precision="ieee")
    rows_of_out = out + m[:, None].to(tl.int64) * outputs
    tl.store(rows_of_out + n[None, :], total.to(dtype), mask=is_row & (n < outputs)[None, :])


@triton.jit
def _dequantize(  # type: ignore[no-untyped-def]
    out,
    values,
    scales,
    steps,
    minima,
    minimum_steps,
    outputs,
    inputs,
    groups,
    groups_of_scale,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    RAISED_BY: tl.constexpr,
    HAS_STEPS: tl.constexpr,
    HAS_MINIMA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Program (outputs, groups): their weights."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    g = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    low, high = _weights(
        values, scales, steps, minima, minimum_steps, n, g, outputs, groups, groups_of_scale,
        BITS, BYTES, RAISED_BY, HAS_STEPS, HAS_MINIMA,
    )  # fmt: skip
    k = (g[:, None] * (BYTES * 8 // BITS) + tl.arange(0, BYTES)[None, :])[None, :, :]
    is_output = (n < outputs)[:, None, None]
    targets = out + n[:, None, None].to(tl.int64) * inputs + k
    tl.store(targets, low.to(out.dtype.element_ty), mask=is_output & (k < inputs))
    if BITS == 4:
        tl.store(targets + BYTES, high.to(out.dtype.element_ty), mask=is_output & (k + BYTES < inputs))


@triton.jit
def _weights(  # type: ignore[no-untyped-def]
    values,
    scales,
    steps,
    minima,
    minimum_steps,
    n,
    g,
    outputs,
    groups,
    groups_of_scale,
    BITS: tl.constexpr,
    BYTES: tl.constexpr,
    RAISED_BY: tl.constexpr,
    HAS_STEPS: tl.constexpr,
    HAS_MINIMA: tl.constexpr,
):
    """The weights of outputs ``n`` and groups ``g`` as float32 [n, g, BYTES]: the low and, in 4 bits, the high ones."""
    is_group = (n < outputs)[:, None] & (g < groups)[None, :]
    of_group = n[:, None].to(tl.int64) * groups + g[None, :]
    of_scale = n[:, None] * (groups // groups_of_scale) + (g // groups_of_scale)[None, :]
    pointers = values + of_group[:, :, None] * BYTES + tl.arange(0, BYTES)[None, None, :]
    stored = tl.load(pointers, mask=is_group[:, :, None], other=0, eviction_policy="evict_first")
    scale = tl.load(scales + of_scale, mask=is_group, other=0.0).to(tl.float32)
    if HAS_STEPS:
        scale *= tl.load(steps + of_group, mask=is_group, other=0).to(tl.float32)
    if BITS == 4:
        low = ((stored & 15).to(tl.int32) - RAISED_BY).to(tl.float32) * scale[:, :, None]
        high = ((stored >> 4).to(tl.int32) - RAISED_BY).to(tl.float32) * scale[:, :, None]
    else:
        low = stored.to(tl.int8, bitcast=True).to(tl.float32) * scale[:, :, None]
        high = low
    if HAS_MINIMA:
        minimum = tl.load(minima + of_scale, mask=is_group, other=0.0).to(tl.float32)
        minimum *= tl.load(minimum_steps + of_group, mask=is_group, other=0).to(tl.float32)
        low -= minimum[:, :, None]
        high -= minimum[:, :, None]
    return low, high
