"""Weights rounded to fewer bits, by the size of the error alone: no calibration data are needed."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP, Bits, Fp8Weight, QuantizedWeight
from phi3_serve.engine.kernels.cpu_library import QUANTIZE, SUFFIXES, cpu_library
from phi3_serve.engine.kernels.kv_cache import rounded

# Scales that are tried give the largest weight of a group one of these values; csrc/quantize.h has the same ones.
EXTREMES = (-8.4, -8.0, -7.6, -7.2, -6.7, 7.25, 6.75, 6.25)
SMALLEST_WEIGHT = 1e-30  # a group without larger ones is 0; csrc/quantize.h has the same constant
CHUNK = 256  # outputs that are rounded at a time, so that the memory of float32 copies stays small


def quantize(weight: Tensor, bits: Bits) -> QuantizedWeight:
    """``weight`` [out, in], of any float dtype on the CPU, in 8 or 4 bits.

    In 8 bits the scale gives the largest weight of an output 127. In 4 bits it is the one of a few with the least sum
    of squared errors in its group, and in bfloat16.
    """
    library = cpu_library()
    if library is None:
        return quantize_in_torch(weight, bits)
    if weight.dtype not in SUFFIXES:
        return _in_chunks(weight, bits, lambda chunk: quantize(chunk.float(), bits))
    weight = weight.contiguous()
    outputs, inputs = weight.shape
    values = torch.empty(outputs, inputs, dtype=torch.int8)
    scales = torch.empty(outputs, 1) if bits == 8 else torch.empty(outputs, -(-inputs // GROUP), dtype=torch.bfloat16)
    function = getattr(library, QUANTIZE[bits, SUFFIXES[weight.dtype]])
    function(weight.data_ptr(), values.data_ptr(), scales.data_ptr(), outputs, inputs, torch.get_num_threads())
    return QuantizedWeight(bits, values, scales)


def quantize_in_torch(weight: Tensor, bits: Bits) -> QuantizedWeight:
    """``quantize`` without the compiled library."""
    return _in_chunks(weight, bits, _to_8_bits if bits == 8 else _to_4_bits)


def quantize_to_fp8(weight: Tensor) -> Fp8Weight:
    """``weight`` [out, in], of any float dtype, in float8. The scale gives the largest weight of an output 448.

    Other scales gain nothing: the error of a number in floating point is in proportion to the number.
    """
    values = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
    for of_chunk, *targets in zip(weight.split(CHUNK), values.split(CHUNK), scales[:, 0].split(CHUNK), strict=True):
        for target, found in zip(targets, rounded(of_chunk, values.dtype), strict=True):
            target.copy_(found)
    return Fp8Weight(values, scales)


def _in_chunks(weight: Tensor, bits: Bits, quantize_chunk: Callable[[Tensor], QuantizedWeight]) -> QuantizedWeight:
    chunks = [quantize_chunk(chunk) for chunk in weight.split(CHUNK)]
    return QuantizedWeight(
        bits, torch.cat([chunk.values for chunk in chunks]), torch.cat([chunk.scales for chunk in chunks])
    )


def _to_8_bits(weight: Tensor) -> QuantizedWeight:
    weight = weight.float()
    largest = weight.abs().amax(1, keepdim=True)
    largest = torch.where(largest < SMALLEST_WEIGHT, 0.0, largest)
    inverse = torch.where(largest > 0, 127 / largest, 0.0)
    values = (weight * inverse).round().clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(8, values, largest / 127)


def _to_4_bits(weight: Tensor) -> QuantizedWeight:
    outputs, inputs = weight.shape
    groups = pad(weight.float(), (0, -inputs % GROUP)).view(outputs, -1, GROUP)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    is_zero = extreme.abs() < SMALLEST_WEIGHT
    scales, best_gain = torch.zeros_like(extreme), torch.full_like(extreme, -torch.inf)
    for candidate in EXTREMES:
        rounded = _rounded(groups, candidate / extreme)
        products = (groups * rounded).sum(2, keepdim=True)
        squares = (rounded * rounded).sum(2, keepdim=True)
        optimum = (products / squares).bfloat16().float()
        gain = optimum * (2 * products - optimum * squares)  # of squared error
        scales = torch.where(gain > best_gain, optimum, scales)
        best_gain = torch.maximum(gain, best_gain)
    scales = torch.where(is_zero, 0.0, scales)
    values = _rounded(groups, torch.where(is_zero, 0.0, 1 / scales))
    return QuantizedWeight(4, values.view(outputs, -1)[:, :inputs].to(torch.int8), scales.squeeze(2).bfloat16())


def _rounded(groups: Tensor, inverse: Tensor) -> Tensor:
    """``groups`` times ``inverse``, rounded to whole numbers from -8 to 7."""
    return (groups * inverse).nan_to_num().clamp(-8, 7).round()
