"""A linear layer for one row in Triton: it streams the weight from memory once.

For one row the time of a linear layer is that of reading its weight. Each program reads the weights of a few outputs
and the whole input, which stays in the caches.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.launch_sizes import cdiv

MIN_BLOCK_K = 512
FEW_OUTPUTS = 4096


@dataclass(frozen=True, slots=True)
class LinearConfig:
    """The sizes of one program."""

    block_n: int  # outputs
    block_k: int  # inputs of one iteration, a divisor of all inputs
    num_warps: int
    num_stages: int = 3


def row_config(outputs: int, inputs: int) -> LinearConfig | None:
    """The config for a weight [outputs, inputs] on an H100; None if no block divides the inputs.

    Measured on the layers of mini and medium with tests/gpu/time_linear.py; see docs/performance-log.md.
    """
    if inputs % MIN_BLOCK_K:
        return None
    if inputs % (2 * MIN_BLOCK_K):
        return LinearConfig(8, MIN_BLOCK_K, 4)
    return LinearConfig(8, 2 * MIN_BLOCK_K, 8) if outputs <= FEW_OUTPUTS else LinearConfig(2, 2 * MIN_BLOCK_K, 4)


def multiply_row(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
    """``x`` [1, inputs] times the transpose of ``weight`` [outputs, inputs], accumulated in float32."""
    outputs, inputs = weight.shape
    out = x.new_empty(1, outputs)
    _multiply_row[(cdiv(outputs, config.block_n),)](
        x,
        weight,
        out,
        outputs,
        inputs,
        config.block_n,
        config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
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
