"""Weights in 8 or 4 bits as panels, which ``csrc/quantized_linear.h`` multiplies by.

A panel has sixteen outputs, and the weights of one input in all of them lie side by side. Outputs are filled up with
zeros to a multiple of sixteen, inputs to a multiple of 32.
"""

import ctypes
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP, Bits, BlockedWeight, QuantizedWeight, Weight
from phi3_serve.engine.kernels.cpu_library import MULTIPLY_BLOCKED, MULTIPLY_QUANTIZED, SUFFIXES

OUTPUTS = 16  # of a panel; csrc/panels.h has the same constant
PADDING_ROWS = 16  # with which kernels fill up a block of rows; csrc/amx/registers.h has the same constant
PANELS_AT_ONCE = 16  # are packed together, so that what lies between the steps stays in the processor's cache
_RAISED_BY = 8  # what is added to a weight of 4 bits, but for the highest in a word


class QuantizedPanels:
    """``contract.PackedWeight`` for the kernels in C++."""

    def __init__(self, weight: Weight, library: ctypes.CDLL) -> None:
        self._outputs, self._inputs = weight.values.shape
        self._format = _format_of(weight)
        self.panels = self._format.panels
        self._multiply = {dtype: getattr(library, self._format.function(suffix)) for dtype, suffix in SUFFIXES.items()}

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
        packed = torch.empty((rows + PADDING_ROWS) * self._format.packed_size)
        self._multiply[x.dtype](
            self.panels.data_ptr(),
            x.data_ptr(),
            packed.data_ptr(),
            out.data_ptr(),
            rows,
            self._inputs,
            len(self.panels),
            torch.get_num_threads(),
            *self._format.more_arguments,
        )
        return out if self._outputs == out.shape[1] else out[:, : self._outputs].contiguous()

    def unpacked(self) -> Weight:
        """See ``contract.PackedWeight``."""
        return self._format.weight(self._outputs, self._inputs)


class _Format(Protocol):
    """What the panels of a weight consist of, as ``csrc/panel_formats.h`` reads them."""

    panels: Tensor  # bytes, [panels, ...]
    packed_size: int  # floats that the kernel packs a row into
    more_arguments: tuple[int, ...]  # of the function

    def function(self, suffix: str) -> str:
        """The name of the function in the library."""

    def weight(self, outputs: int, inputs: int) -> Weight:
        """What the panels were made from."""


def _format_of(weight: Weight) -> _Format:
    if isinstance(weight, BlockedWeight):
        return _Blocks(weight)
    return _Bytes(weight) if weight.bits == 8 else _Groups(weight)


class _Bytes:
    """Int8: 16 scales in float32 and then [inputs, 16] weights."""

    more_arguments: tuple[int, ...] = ()

    def __init__(self, weight: QuantizedWeight) -> None:
        values, scales = _filled_up(weight.values), _filled_up(weight.scales, of_inputs=False)
        count = len(values) // OUTPUTS
        head = scales.reshape(count, OUTPUTS).view(torch.uint8)
        self.panels = torch.cat([head, _as_bytes(values.view(count, OUTPUTS, 1, -1)).view(count, -1)], dim=1)
        self.packed_size = values.shape[1]

    def function(self, suffix: str) -> str:
        return MULTIPLY_QUANTIZED[8, torch.float32, suffix]

    def weight(self, outputs: int, inputs: int) -> QuantizedWeight:
        head = OUTPUTS * torch.float32.itemsize
        scales = self.panels[:, :head].contiguous().view(torch.float32).view(-1, 1)
        values = _of_bytes(self.panels[:, None, head:]).reshape(len(scales), -1)
        return QuantizedWeight(8, values[:outputs, :inputs], scales[:outputs])


class _Groups:
    """Int4: for each group 16 scales and then [4, 16] words of eight weights."""

    more_arguments: tuple[int, ...] = ()

    def __init__(self, weight: QuantizedWeight) -> None:
        values, scales = _filled_up(weight.values), _filled_up(weight.scales, of_inputs=False)
        count, groups = len(values) // OUTPUTS, values.shape[1] // GROUP
        body = _as_words(values.view(count, OUTPUTS, groups, GROUP))
        self.panels = torch.cat([_of_panels(scales), body], dim=2)
        self.packed_size = groups * (1 + GROUP)
        self._dtype = scales.dtype

    def function(self, suffix: str) -> str:
        return MULTIPLY_QUANTIZED[4, self._dtype, suffix]

    def weight(self, outputs: int, inputs: int) -> QuantizedWeight:
        head = OUTPUTS * self._dtype.itemsize
        scales = _of_outputs(self.panels[:, :, :head], self._dtype)
        values = _of_words(self.panels[:, :, head:]).reshape(len(scales), -1)
        return QuantizedWeight(4, values[:outputs, :inputs], scales[:outputs])


class _Blocks:
    """Blocked: for each block its scales, and then each of its groups: steps and weights. Minima follow scales."""

    def __init__(self, weight: BlockedWeight) -> None:
        self._bits: Bits = weight.bits
        self._group = weight.group
        self._parts = 1 if weight.minima is None else 2
        groups_of_block = weight.steps.shape[1] // weight.scales.shape[1]
        inputs = weight.values.shape[1]
        if inputs % (groups_of_block * self._group) or inputs % GROUP:
            raise TypeError(f"expected inputs in whole blocks of {groups_of_block * self._group}, got {inputs}")
        self.panels = self._panels(weight)
        self.packed_size = inputs // self._group * (2 + self._group)
        self.more_arguments: tuple[int, ...] = (groups_of_block,)

    def function(self, suffix: str) -> str:
        return MULTIPLY_BLOCKED[self._bits, self._group, self._parts == 2, suffix]

    def _panels(self, weight: BlockedWeight) -> Tensor:
        values = _filled_up(weight.values)
        of_groups = values.view(-1, OUTPUTS, values.shape[1] // self._group, self._group)
        body = _as_words(of_groups - _RAISED_BY) if self._bits == 4 else _as_bytes(of_groups)
        heads = [_of_panels(scales) for scales in (weight.scales, weight.minima) if scales is not None]
        steps = [_of_panels(steps) for steps in (weight.steps, weight.minimum_steps) if steps is not None]
        groups = torch.cat([*steps, body], dim=2)  # [panels, groups, bytes]
        return torch.cat([*heads, groups.view(len(groups), weight.scales.shape[1], -1)], dim=2)

    def weight(self, outputs: int, inputs: int) -> BlockedWeight:
        head, steps = self._parts * OUTPUTS * torch.float16.itemsize, self._parts * OUTPUTS
        groups = self.panels[:, :, head:].reshape(len(self.panels), inputs // self._group, -1)
        body = groups[:, :, steps:]
        values = _of_words(body) + _RAISED_BY if self._bits == 4 else _of_bytes(body)
        of_blocks = [_of_outputs(h, torch.float16) for h in self.panels[:, :, :head].chunk(self._parts, dim=2)]
        of_groups = [_of_outputs(s, torch.int8) for s in groups[:, :, :steps].chunk(self._parts, dim=2)]
        parts = [part[:outputs] for pair in zip(of_blocks, of_groups, strict=True) for part in pair]
        return BlockedWeight(self._bits, values.reshape(-1, inputs)[:outputs], *parts)


def _filled_up(of_outputs: Tensor, *, of_inputs: bool = True) -> Tensor:
    """``of_outputs`` [out, ...] with zeros up to a whole panel, and if it is ``of_inputs`` up to a whole group."""
    missing = (0, -of_outputs.shape[1] % GROUP if of_inputs else 0, 0, -len(of_outputs) % OUTPUTS)
    return pad(of_outputs, missing) if any(missing) else of_outputs  # pad copies in any case


def _of_panels(of_outputs: Tensor) -> Tensor:
    """Numbers [out, n] as bytes, [panels, n, bytes of 16 outputs]."""
    filled_up = _filled_up(of_outputs, of_inputs=False)
    return filled_up.view(-1, OUTPUTS, filled_up.shape[1]).transpose(1, 2).contiguous().view(torch.uint8)


def _of_outputs(of_panels: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that ``_of_panels`` was given."""
    return of_panels.contiguous().view(dtype).transpose(1, 2).reshape(-1, of_panels.shape[1])


def _as_bytes(values: Tensor) -> Tensor:
    """Weights [panels, 16, groups, n] as [n, 16] in each group, [panels, groups, bytes]."""
    return values.permute(0, 2, 3, 1).flatten(2).view(torch.uint8)


def _of_bytes(body: Tensor) -> Tensor:
    """The weights that ``_as_bytes`` was given."""
    values: Tensor = body.contiguous().view(torch.int8).unflatten(2, (-1, OUTPUTS))
    return values.permute(0, 3, 1, 2)


def _as_words(values: Tensor) -> Tensor:
    """Weights [panels, 16, groups, 32] from -8 to 7 as [4, 16] words in each group, [panels, groups, bytes].

    A word has four even inputs and then four odd ones.
    """
    words = values.new_empty((len(values), values.shape[2], values.shape[3] // 8, OUTPUTS), dtype=torch.int32)
    for of_panels, target in zip(values.split(PANELS_AT_ONCE), words.split(PANELS_AT_ONCE), strict=True):
        # Eight weights are one number of 64 bits, which takes a third of the time of steps over their bytes.
        numbers = of_panels.unflatten(3, (-1, 8)).contiguous().view(torch.int64).squeeze(-1)
        nibbles = (numbers & 0x0F0F0F0F0F0F0F0F) ^ 0x0008080808080808  # all but the highest are raised by 8, modulo 16
        target.copy_((_every_other(nibbles) | _every_other(nibbles >> 8) << 16).permute(0, 2, 3, 1))
    return words.flatten(2).view(torch.uint8)


def _every_other(nibbles: Tensor) -> Tensor:
    """The nibbles in the bytes 0, 2, 4 and 6 of each number, side by side."""
    pairs = nibbles & 0x000F000F000F000F
    pairs = (pairs | pairs >> 12) & 0x000000FF000000FF
    return (pairs | pairs >> 24) & 0xFFFF


def _of_words(body: Tensor) -> Tensor:
    """The weights that ``_as_words`` was given."""
    words = body.unflatten(2, (-1, OUTPUTS, 4)).permute(0, 3, 1, 2, 4)
    nibbles = torch.stack([words & 15, words >> 4], dim=-1).flatten(-2).view(torch.int8)  # the last two are one word
    values = nibbles - nibbles.new_tensor([_RAISED_BY] * 7 + [0])
    highest = values[..., 7]
    values[..., 7] = torch.where(highest >= _RAISED_BY, highest - 16, highest)
    of_inputs: Tensor = values.unflatten(-1, (2, 4)).transpose(-1, -2)
    return of_inputs.flatten(3)
