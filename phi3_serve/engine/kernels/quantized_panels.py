"""Weights in 8 or 4 bits as panels, which ``cpu.cpp`` multiplies by.

A panel has sixteen outputs, and the weights of one input in all of them lie side by side. Outputs are filled up with
zeros to a multiple of sixteen, inputs to a multiple of 32.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP, QuantizedWeight
from phi3_serve.engine.kernels.cpu_library import MULTIPLY_QUANTIZED, SUFFIXES

OUTPUTS = 16  # of a panel; cpu.cpp has the same constant
_BITS_OF_WORD = 32
_RAISED_BY = 8  # what is added to a weight of 4 bits, but for the highest in a word


class QuantizedPanels:
    """``contract.PackedWeight`` for the kernels in C++."""

    def __init__(self, weight: QuantizedWeight, library: ctypes.CDLL) -> None:
        self._outputs, self._inputs = weight.values.shape
        self._bits = weight.bits
        values = pad(weight.values, (0, -self._inputs % GROUP, 0, -self._outputs % OUTPUTS))
        scales = pad(weight.scales, (0, 0, 0, -self._outputs % OUTPUTS))
        self.panels = _panels_of_8_bits(values, scales) if weight.bits == 8 else _panels_of_4_bits(values, scales)
        self._dtype_of_scales = scales.dtype
        self._multiply = {
            dtype: getattr(library, MULTIPLY_QUANTIZED[weight.bits, scales.dtype, suffix])
            for dtype, suffix in SUFFIXES.items()
        }
        # floats that the kernel packs a row into
        self._packed_size = values.shape[1] + (values.shape[1] // GROUP if weight.bits == 4 else 0)

    @property
    def num_bytes(self) -> int:
        """See ``contract.PackedWeight``."""
        return self.panels.nbytes

    def multiply(self, x: Tensor) -> Tensor:
        """See ``contract.PackedWeight``."""
        if x.dtype not in self._multiply:
            return self.multiply(x.float()).to(x.dtype)
        rows = len(x)
        if x.shape != (rows, self._inputs) or not x.is_contiguous():
            raise TypeError(f"expected contiguous [rows, {self._inputs}], got {list(x.shape)}")
        out = x.new_empty(rows, len(self.panels) * OUTPUTS)
        packed = torch.empty(rows * self._packed_size)
        self._multiply[x.dtype](
            self.panels.data_ptr(),
            x.data_ptr(),
            packed.data_ptr(),
            out.data_ptr(),
            rows,
            self._inputs,
            len(self.panels),
            torch.get_num_threads(),
        )
        return out if self._outputs == out.shape[1] else out[:, : self._outputs].contiguous()

    def unpacked(self) -> QuantizedWeight:
        """See ``contract.PackedWeight``."""
        values, scales = _of_8_bits(self.panels) if self._bits == 8 else _of_4_bits(self.panels, self._dtype_of_scales)
        return QuantizedWeight(self._bits, values[: self._outputs, : self._inputs], scales[: self._outputs])


def _panels_of_8_bits(values: Tensor, scales: Tensor) -> Tensor:
    """[panels, 16 scales in float32 and then [inputs, 16] weights], as bytes."""
    count = len(values) // OUTPUTS
    head = scales.reshape(count, OUTPUTS).view(torch.uint8)
    body = values.view(count, OUTPUTS, -1).transpose(1, 2).reshape(count, -1).view(torch.uint8)
    return torch.cat([head, body], dim=1)


def _of_8_bits(panels: Tensor) -> tuple[Tensor, Tensor]:
    head = OUTPUTS * torch.float32.itemsize
    scales = panels[:, :head].contiguous().view(torch.float32)
    values = panels[:, head:].contiguous().view(torch.int8).view(len(panels), -1, OUTPUTS).transpose(1, 2)
    return values.reshape(len(panels) * OUTPUTS, -1), scales.view(-1, 1)


def _panels_of_4_bits(values: Tensor, scales: Tensor) -> Tensor:
    """[panels, groups, 16 scales and then [4, 16] words of eight weights], as bytes."""
    count, groups = len(values) // OUTPUTS, values.shape[1] // GROUP
    raised = values.view(count, OUTPUTS, groups, GROUP // 8, 8) + values.new_tensor([_RAISED_BY] * 7 + [0])
    nibbles = raised.view(torch.uint8) & 15
    words = nibbles[..., 0::2] | nibbles[..., 1::2] << 4  # [panels, 16, groups, 4, 4 bytes of a word]
    body = words.permute(0, 2, 3, 1, 4).reshape(count, groups, -1)
    head = scales.view(count, OUTPUTS, groups).transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat([head, body], dim=2)


def _of_4_bits(panels: Tensor, dtype_of_scales: torch.dtype) -> tuple[Tensor, Tensor]:
    count, groups = panels.shape[:2]
    head = OUTPUTS * dtype_of_scales.itemsize
    scales = panels[:, :, :head].contiguous().view(dtype_of_scales).transpose(1, 2)
    words = panels[:, :, head:].view(count, groups, GROUP // 8, OUTPUTS, 4).permute(0, 3, 1, 2, 4)
    nibbles = torch.stack([words & 15, words >> 4], dim=-1).flatten(-2).view(torch.int8)  # the last two are one word
    values = nibbles - nibbles.new_tensor([_RAISED_BY] * 7 + [0])
    highest = values[..., 7]
    values[..., 7] = torch.where(highest >= _RAISED_BY, highest - 16, highest)
    return values.reshape(count * OUTPUTS, groups * GROUP), scales.reshape(count * OUTPUTS, groups)
