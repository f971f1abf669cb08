"""Weights in bfloat16 or float16 as panels, which kernels multiply by rows in float32.

A layer gives what it gives with the weight in float32, up to the order of the sums, and reads half of the bytes. In
``csrc/panel_formats.h`` a weight becomes a float in a register. With AMX, ``csrc/amx/split_linear.h`` splits the
numbers of a row into three parts in bfloat16. Both are exact; only numbers below 2e-31 lose digits with AMX. A row's
result does not depend on the other rows.
"""

import sys

import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP
from phi3_serve.engine.kernels.cpu_library import MULTIPLY_HALVES, MULTIPLY_SPLIT, cpu_library, level_of
from phi3_serve.engine.kernels.quantized_panels import OUTPUTS, PADDING_ROWS

PARTS = 3  # of a float in bfloat16; csrc/amx/split_row.h has the same constant
SPLIT_ROWS = 256  # that are packed at once there: MAX_SPLIT_BLOCKS tiles
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
        library = cpu_library()
        is_split = weight.dtype == torch.bfloat16 and hasattr(library, MULTIPLY_SPLIT)
        self._multiply = getattr(library, MULTIPLY_SPLIT if is_split else MULTIPLY_HALVES[weight.dtype])
        missing = (0, -self._inputs % GROUP, 0, -self._outputs % OUTPUTS)
        filled_up = (pad(weight, missing) if any(missing) else weight).view(-1, OUTPUTS, self._inputs + missing[1])
        packed_inputs = filled_up.shape[2]
        # The numbers of an input, or of two for the pairs that AMX multiplies, lie side by side for all outputs.
        side_by_side = filled_up.unflatten(2, (-1, 2 if is_split else 1)).transpose(1, 2)
        self._panels = weight.new_empty(side_by_side.shape)
        for of_outputs, target in zip(
            side_by_side.split(PANELS_AT_ONCE), self._panels.split(PANELS_AT_ONCE), strict=True
        ):
            target.copy_(of_outputs)
        self._most_packed_rows = SPLIT_ROWS if is_split else sys.maxsize
        self._packed_size = packed_inputs * PARTS // 2 if is_split else packed_inputs  # floats of a row

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` float32 [rows, in], contiguous, times the transposed weight: float32 [rows, out]."""
        rows = len(x)
        if x.shape != (rows, self._inputs) or x.dtype != torch.float32 or not x.is_contiguous():
            raise TypeError(f"expected contiguous float32 [rows, {self._inputs}], got {x.dtype} {list(x.shape)}")
        out = x.new_empty(rows, len(self._panels) * OUTPUTS)
        packed = torch.empty((min(rows, self._most_packed_rows) + PADDING_ROWS) * self._packed_size)
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
