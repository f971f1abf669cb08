"""A linear layer for few rows in Triton: it streams the weight from memory once.

For a few rows the time of a linear layer is that of reading its weight. Each program reads the weights of a few outputs
and the whole input, which stays in the caches.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """The sizes of one program."""

    block_n: int  # outputs
    block_k: int  # inputs of one iteration
    num_warps: int
    num_stages: int


def multiply(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
    """``x`` [rows, inputs] times the transpose of ``weight`` [outputs, inputs], accumulated in float32.

    ``inputs`` is a multiple of the block of inputs. Up to 16 rows are efficient.
    """
    rows, inputs = x.shape
    outputs = len(weight)
    out = x.new_empty(rows, outputs)
    grid = (triton.cdiv(outputs, config.block_n),)
    if rows == 1:
        _multiply_row[grid](
            x, weight, out, outputs, inputs, config.block_n, config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    else:
        block_m = max(16, triton.next_power_of_2(rows))
        _multiply_rows[grid](
            x, weight, out, rows, outputs, inputs, block_m, config.block_n, config.block_k,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
    return out


@triton.jit
def _multiply_row(x, weight, out, outputs, inputs, block_n: tl.constexpr, block_k: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row: products and sums without tensor cores, which need sixteen rows."""
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    is_output = n < outputs
    weights = weight + n[:, None].to(tl.int64) * inputs + k[None, :]
    total = tl.zeros((block_n, block_k), tl.float32)
    for start in range(0, inputs, block_k):
        w = tl.load(weights + start, mask=is_output[:, None], other=0.0, eviction_policy="evict_first")
        values = tl.load(x + start + k)
        total += w.to(tl.float32) * values.to(tl.float32)[None, :]
    tl.store(out + n, tl.sum(total, 1).to(out.dtype.element_ty), mask=is_output)


@triton.jit(do_not_specialize=["rows"])
def _multiply_rows(  # type: ignore[no-untyped-def]
    x,
    weight,
    out,
    rows,
    outputs,
    inputs,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
):
    """Up to block_m rows, with tensor cores."""
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    m = tl.arange(0, block_m)
    k = tl.arange(0, block_k)
    is_output, is_row = n < outputs, m < rows
    weights = weight + n[None, :].to(tl.int64) * inputs + k[:, None]
    values = x + m[:, None] * inputs + k[None, :]
    total = tl.zeros((block_m, block_n), tl.float32)
    for start in range(0, inputs, block_k):
        w = tl.load(weights + start, mask=is_output[None, :], other=0.0, eviction_policy="evict_first")
        v = tl.load(values + start, mask=is_row[:, None], other=0.0)
        total = tl.dot(v, w, total, input_precision="ieee")
    tl.store(
        out + m[:, None] * outputs + n[None, :],
        total.to(out.dtype.element_ty),
        mask=is_row[:, None] & is_output[None, :],
    )
