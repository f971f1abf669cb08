"""Weights in bfloat16 or float16 as panels, which ``csrc/panel_formats.h`` multiplies by rows in float32.

A weight becomes a float in a register, which is exact. So a layer gives what it gives with the weight in float32, up to
the order of the sums, and reads half of the bytes. A row's result does not depend on the other rows.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP
from phi3_serve.engine.kernels.cpu_library import MULTIPLY_HALVES, cpu_library, level_of
from phi3_serve.engine.kernels.quantized_panels import OUTPUTS, PADDING_ROWS

PANELS_AT_ONCE = 64  # are transposed together, so that they stay in the processor's cache


def multiplies_halves() -> bool:
    """Whether weights in 16 bits are at least as fast as in float32 here. Without wide vectors they are not."""
    library = cpu_library()
    return library is not None and level_of(library) != "any"


def keeps_dtype(weight: torch.dtype, computed: torch.dtype) -> bool:
    """Whether a CPU keeps weights in the dtype ``weight`` for activations in the dtype ``computed``, which is wider."""
    return weight in MULTIPLY_HALVES and computed == torch.float32 and multiplies_halves()


class HalfPanels:
    """A linear layer without bias on a CPU, for activations in float32."""

    def __init__(self, weight: Tensor) -> None:
        """``weight``: bfloat16 or float16 [out, in]. It is copied."""
        self._outputs, self._inputs = weight.shape
        self._multiply = getattr(cpu_library(), MULTIPLY_HALVES[weight.dtype])
        missing = (0, -self._inputs % GROUP, 0, -self._outputs % OUTPUTS)
        filled_up = (pad(weight, missing) if any(missing) else weight).view(-1, OUTPUTS, self._inputs + missing[1])
        count, _, self._packed_size = filled_up.shape
        self._panels = weight.new_empty(count, self._packed_size, OUTPUTS)
        for of_outputs, target in zip(filled_up.split(PANELS_AT_ONCE), self._panels.split(PANELS_AT_ONCE), strict=True):
            target.copy_(of_outputs.transpose(1, 2))

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` float32 [rows, in], contiguous, times the transposed weight: float32 [rows, out]."""
        rows = len(x)
        if x.shape != (rows, self._inputs) or x.dtype != torch.float32 or not x.is_contiguous():
            raise TypeError(f"expected contiguous float32 [rows, {self._inputs}], got {x.dtype} {list(x.shape)}")
        out = x.new_empty(rows, len(self._panels) * OUTPUTS)
        packed = torch.empty((rows + PADDING_ROWS) * self._packed_size)
        self._multiply(
            self._panels.data_ptr(),
            x.data_ptr(),
            packed.data_ptr(),
            out.data_ptr(),
            rows,
            self._inputs,
            len(self._panels),
            torch.get_num_threads(),
        )
        return out if self._outputs == out.shape[1] else out[:, : self._outputs].contiguous()
