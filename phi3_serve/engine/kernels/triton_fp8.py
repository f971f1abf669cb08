"""Linear layers in float8 on a GPU: Triton rounds the inputs, and ``torch._scaled_mm`` multiplies.

The tensor cores multiply float8 by float8 alone, so the inputs are rounded, too. Each row has a scale that depends on
nothing but the row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.device import compute_capability
from phi3_serve.engine.kernels.contract import Fp8Weight
from phi3_serve.engine.kernels.kv_cache import LARGEST, SMALLEST

FP8 = torch.float8_e4m3fn
MULTIPLE = 16  # of the inputs and of the outputs; ``_scaled_mm`` requires it
HOPPER = 9  # the first number of its compute capability
BLOCK = 2048  # inputs of one iteration; not measured
_LARGEST = tl.constexpr(LARGEST[FP8])
_SMALLEST = tl.constexpr(SMALLEST)


class ScaledWeight:
    """``contract.PackedWeight`` in float8, filled up with zeros to whole multiples."""

    def __init__(self, weight: Fp8Weight) -> None:
        self._outputs, self._inputs = weight.values.shape
        fill = (0, -self._inputs % MULTIPLE, 0, -self._outputs % MULTIPLE)
        self._values = pad(weight.values.view(torch.uint8), fill).view(FP8).contiguous()
        self._scales = pad(weight.scales, (0, 0, 0, fill[3])).contiguous()
        self._capability = compute_capability(weight.values.device)

    @property
    def num_bytes(self) -> int:
        """See ``contract.PackedWeight``."""
        return self._values.nbytes + self._scales.nbytes

    def multiply(self, x: Tensor) -> Tensor:
        """See ``contract.PackedWeight``. With other numbers of rows, the order of a row's sums may differ."""
        if x.ndim != 2 or x.shape[1] != self._inputs or not x.is_contiguous():
            raise TypeError(f"expected contiguous [rows, {self._inputs}], got {list(x.shape)}")
        values, scales = round_rows(x)
        # Without fast accumulation, which keeps fewer bits of a sum.
        products = torch._scaled_mm(
            values,
            self._values.T,
            scales,
            self._scales.T,
            out_dtype=product_dtype(x.dtype, self._capability),
            use_fast_accum=False,
        )
        return products[:, : self._outputs].to(x.dtype).contiguous()

    def unpacked(self) -> Fp8Weight:
        """See ``contract.PackedWeight``."""
        values = self._values.view(torch.uint8)[: self._outputs, : self._inputs].contiguous().view(FP8)
        return Fp8Weight(values, self._scales[: self._outputs])


def product_dtype(wanted: torch.dtype, capability: tuple[int, int] | None) -> torch.dtype:
    """The dtype of products that are ``wanted`` in another; ``capability`` of the GPU, None: a CPU.

    With a scale for each row, torch multiplies by cuBLAS on Hopper and by CUTLASS on other GPUs. There, torch 2.11
    writes bfloat16 into the memory of float16 (https://github.com/pytorch/pytorch/pull/187569).
    """
    is_cutlass = capability is not None and capability[0] != HOPPER
    return torch.bfloat16 if is_cutlass else wanted


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` [rows, in] as ``kv_cache.rounded`` does it: float8 [rows, in], filled up with zeros to ``MULTIPLE``.

    The scales are float32 [rows, 1].
    """
    rows, inputs = x.shape
    stored = inputs + -inputs % MULTIPLE
    values = torch.empty(rows, stored, dtype=FP8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    if rows:
        _round_rows[(rows,)](x, values, scales, inputs, stored, BLOCK=BLOCK, num_warps=8)
    return values, scales


@triton.jit
def _round_rows(x, values, scales, inputs, stored, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Program: one row, which is read twice; the second time it is in the caches.

    The maximum leaves nan out, but nan stays nan in float8, and infinity times its inverse becomes nan.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, inputs, BLOCK):
        numbers = tl.load(x + row * inputs + start + column, mask=start + column < inputs, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(numbers))
    of_row = tl.max(largest, 0)
    is_zero = of_row < _SMALLEST
    inverse = tl.where(is_zero, 0.0, tl.div_rn(_LARGEST, tl.where(is_zero, 1.0, of_row)))
    tl.store(scales + row, tl.where(is_zero, 0.0, of_row * (1.0 / _LARGEST)))
    for start in range(0, stored, BLOCK):
        numbers = tl.load(x + row * inputs + start + column, mask=start + column < inputs, other=0.0).to(tl.float32)
        rounded = (numbers * inverse).to(values.dtype.element_ty)
        tl.store(values + row * stored + start + column, rounded, mask=start + column < stored)
