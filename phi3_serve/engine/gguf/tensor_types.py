"""The tensors of a GGUF file: each type that is read, as the weight that it means.

A type packs its weights in blocks of bytes; ggml-quants.c and ggml-common.h of llama.cpp define them, and
``gguf.quants`` has them in numpy. Numbers and scales stay as they are stored.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.checkpoint import StoredTensor
from phi3_serve.engine.gguf.types import FLOATS
from phi3_serve.engine.kernels.contract import BlockedWeight, QuantizedWeight, Weight


def read(tensor: StoredTensor) -> Tensor | Weight:
    """``tensor`` [out, in], which has one of ``types.TYPES``, or a tensor of floats of any shape."""
    stored = torch.from_numpy(np.fromfile(tensor.file, np.uint8, tensor.num_bytes, offset=tensor.offset))
    if tensor.dtype in FLOATS:
        return stored.view(getattr(torch, FLOATS[tensor.dtype])).view(tensor.shape)
    return _WEIGHTS[tensor.dtype](stored.view(tensor.shape[0], -1))


def _q4_0(stored: Tensor) -> QuantizedWeight:
    """Blocks of 32 inputs: scale, then 16 bytes, whose low halves are the first sixteen inputs. 8 is 0."""
    scales, packed = _split(stored, 2, 16)
    return QuantizedWeight(4, _in_order(_halves(packed) - 8), _float16(scales))


def _q8_0(stored: Tensor) -> BlockedWeight:
    """Blocks of 32 inputs: scale, then 32 numbers."""
    scales, numbers = _split(stored, 2, 32)
    scales = _float16(scales)
    return BlockedWeight(8, _in_order(numbers.view(torch.int8)), scales, torch.ones_like(scales, dtype=torch.int8))


def _q4_k(stored: Tensor) -> BlockedWeight:
    """Blocks of eight groups of 32 inputs: scale, minimum, 12 bytes of steps, 128 bytes with two groups in each 32."""
    scales, minima, steps, packed = _split(stored, 2, 2, 12, 128)
    return BlockedWeight(4, _in_order(_halves(packed, 32)), *_scales_and_minima(scales, minima, steps))


def _q5_k(stored: Tensor) -> BlockedWeight:
    """As Q4_K, and before the low four bits 32 bytes, whose bit g is the highest bit of group g."""
    scales, minima, steps, highest, packed = _split(stored, 2, 2, 12, 32, 128)
    bits = highest[:, :, None] >> _shifts(*range(8)) & 1
    numbers = _halves(packed, 32).view(bits.shape) | (bits << 4).view(torch.int8)  # [out, blocks, 8, 32]
    return BlockedWeight(8, _in_order(numbers), *_scales_and_minima(scales, minima, steps))


def _q6_k(stored: Tensor) -> BlockedWeight:
    """Blocks of sixteen groups of 16 inputs: 128 bytes of the low four bits, 64 of the high two, steps, scale.

    Each half of a block has 64 bytes, whose low halves come first, and 32 bytes with the high bits of four inputs that
    are 32 apart. 32 is 0.
    """
    low, high, steps, scales = _split(stored, 128, 64, 16, 2)
    of_halves = high.unflatten(2, (2, 1, 32)) >> _shifts(0, 2, 4, 6) & 3
    numbers = _halves(low, 64).unflatten(2, (2, 4, 32)) | (of_halves << 4).view(torch.int8)
    return BlockedWeight(8, _in_order(numbers - 32), _float16(scales), _in_order(steps.view(torch.int8)))


_WEIGHTS: Mapping[str, Callable[[Tensor], Weight]] = {
    "Q4_0": _q4_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}


def _split(stored: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """The parts of the blocks in ``stored`` [out, bytes], each [out, blocks, its bytes]."""
    parts: tuple[Tensor, ...] = stored.unflatten(1, (-1, sum(sizes))).split(sizes, dim=2)
    return parts


def _float16(of_blocks: Tensor) -> Tensor:
    """Numbers of two bytes each, [out, blocks]."""
    return of_blocks.contiguous().view(torch.float16).squeeze(2)


def _halves(packed: Tensor, together: int = 16) -> Tensor:
    """The low halves of each ``together`` bytes and then their high halves, int8 [out, blocks, 2 * bytes]."""
    of_runs = packed.unflatten(2, (-1, together))
    return torch.stack([of_runs & 15, of_runs >> 4], dim=3).flatten(2).view(torch.int8)


def _shifts(*shifts: int) -> Tensor:
    """For one more dimension before the last one."""
    return torch.tensor(shifts, dtype=torch.uint8)[:, None]


def _in_order(of_blocks: Tensor) -> Tensor:
    """[out, blocks, ...] as [out, the rest]."""
    return of_blocks.flatten(1).contiguous()


def _scales_and_minima(scales: Tensor, minima: Tensor, packed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The scales of the blocks, the steps of their groups, and both for the minima.

    A step has six bits. ``packed`` has those of groups 0 to 3, of their minima, and then the low four bits of groups 4
    to 7 and of their minima, side by side; the high two bits of these are the highest of the first eight bytes.
    """
    of_first, of_first_minima, low = packed.split(4, dim=2)
    steps = torch.cat([of_first & 63, low & 15 | of_first >> 6 << 4], dim=2)
    minimum_steps = torch.cat([of_first_minima & 63, low >> 4 | of_first_minima >> 6 << 4], dim=2)
    return (
        _float16(scales),
        _in_order(steps.view(torch.int8)),
        _float16(minima),
        _in_order(minimum_steps.view(torch.int8)),
    )
