"""Linear layers as GPTQ and AWQ store them: by inputs, with a zero for each group of inputs.

weight[o, i] = (number[i, o] - zero[group, o]) * scale[group, o]. Numbers have four bits, eight are in a word.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import GROUP, BlockedWeight, QuantizedWeight, Weight
from phi3_serve.engine.packed_layout import PackedLayout
from phi3_serve.engine.stored_quantization import StoredQuantization
from phi3_serve.errors import CheckpointError

NUMBERS, ZEROS, SCALES, GROUP_OF_INPUT = "qweight", "qzeros", "scales", "g_idx"
PER_WORD = 8
# Where AWQ has the eight outputs of a word, from the lowest bits on (``awq/modules/linear/gemm.py`` of AutoAWQ).
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
_MIDDLE = 8  # the zero of symmetric weights


def unpack_gptq(parts: Mapping[str, Tensor], inputs: int, stored: StoredQuantization, *, added_to_zeros: int) -> Weight:
    """The weight of a layer of AutoGPTQ or GPTQModel, whose words have eight inputs of an output.

    Words of zeros have eight outputs. The first version of the format stores zeros less one (``added_to_zeros`` 1).

    Raises:
        CheckpointError: see ``PackedLayout.unpack``.
    """
    outputs = parts[NUMBERS].shape[-1]
    _check(parts, inputs, outputs, stored, numbers=[inputs // PER_WORD, outputs])
    order = parts.get(GROUP_OF_INPUT)
    size = stored.group_size or inputs
    if order is not None and not torch.equal(order.long(), torch.arange(inputs) // size):
        raise CheckpointError(
            f"{GROUP_OF_INPUT} is not in the order of the inputs, as with desc_act, which is not read"
        )
    numbers = _nibbles(parts[NUMBERS].T)  # [out, in]
    zeros = _nibbles(parts[ZEROS]).T + added_to_zeros
    return _weight(numbers, zeros, parts[SCALES].T, size)


def unpack_awq(parts: Mapping[str, Tensor], inputs: int, stored: StoredQuantization) -> Weight:
    """The weight of a layer of AutoAWQ in its version gemm, whose words have eight outputs of an input or of a group.

    Raises:
        CheckpointError: see ``PackedLayout.unpack``.
    """
    outputs = parts[SCALES].shape[-1]
    _check(parts, inputs, outputs, stored, numbers=[inputs, outputs // PER_WORD])
    numbers, zeros = (
        _nibbles(parts[part]).unflatten(1, (-1, PER_WORD))[:, :, AWQ_ORDER].flatten(1).T for part in (NUMBERS, ZEROS)
    )
    return _weight(numbers, zeros, parts[SCALES].T, stored.group_size or inputs)


def _check(
    parts: Mapping[str, Tensor], inputs: int, outputs: int, stored: StoredQuantization, *, numbers: list[int]
) -> None:
    groups = inputs // (stored.group_size or inputs)
    shapes = {NUMBERS: numbers, ZEROS: [groups, outputs // PER_WORD], SCALES: [groups, outputs]}
    if inputs % GROUP or inputs % (stored.group_size or inputs) or outputs % PER_WORD:
        raise CheckpointError(
            f"{NUMBERS} has {outputs} outputs of {inputs} inputs, which are not whole groups and words"
        )
    for part, shape in shapes.items():
        if list(parts[part].shape) != shape:
            raise CheckpointError(f"{part} has {list(parts[part].shape)} instead of {shape}")
    for part in (NUMBERS, ZEROS):
        if parts[part].dtype != torch.int32:
            raise CheckpointError(f"{part} is {parts[part].dtype} instead of torch.int32")
    if not torch.equal(parts[SCALES].half().float(), parts[SCALES].float()):
        raise CheckpointError(f"{SCALES} has numbers that float16 does not have, or nan; the weights are damaged")


def _nibbles(words: Tensor) -> Tensor:
    """The eight numbers of each word, from the lowest bits on, int8 [rows, 8 * words]."""
    of_bytes = words.contiguous().view(torch.uint8)  # little-endian
    return torch.stack([of_bytes & 15, of_bytes >> 4], dim=2).flatten(1).view(torch.int8)


def _weight(numbers: Tensor, zeros: Tensor, scales: Tensor, group_size: int) -> Weight:
    """Numbers [out, in], zeros and scales [out, groups] in a form that kernels have."""
    scales = scales.half().contiguous()
    repeats = group_size // GROUP
    if bool((zeros == _MIDDLE).all()):
        return QuantizedWeight(4, (numbers - _MIDDLE).contiguous(), scales.repeat_interleave(repeats, dim=1))
    steps = zeros.repeat_interleave(repeats, dim=1)
    return BlockedWeight(4, numbers.contiguous(), scales, torch.ones_like(steps), scales, steps)


def _num_outputs(shapes: Mapping[str, Sequence[int]]) -> int:
    return shapes[SCALES][-1]


_PARTS, _OPTIONAL = (NUMBERS, ZEROS, SCALES), (GROUP_OF_INPUT,)
GPTQ = PackedLayout(_PARTS, _OPTIONAL, _num_outputs, partial(unpack_gptq, added_to_zeros=1))
GPTQ_V2 = PackedLayout(_PARTS, _OPTIONAL, _num_outputs, partial(unpack_gptq, added_to_zeros=0))
AWQ = PackedLayout(_PARTS, _OPTIONAL, _num_outputs, unpack_awq)
