"""Linear layers as the library compressed-tensors stores them in its formats pack-quantized and float-quantized."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP, Fp8Weight, QuantizedWeight
from phi3_serve.engine.packed_layout import PackedLayout
from phi3_serve.engine.stored_quantization import StoredQuantization
from phi3_serve.errors import CheckpointError

PACKED, SCALE, SHAPE, IN_FP8 = "weight_packed", "weight_scale", "weight_shape", "weight"
CHUNK = 64  # outputs that are unpacked at a time
_NAN = 127  # the bits of nan in e4m3, without the sign


def unpack(parts: Mapping[str, Tensor], inputs: int, stored: StoredQuantization) -> QuantizedWeight:
    """The weight of a layer, with each of its values and scales as it is stored.

    Args:
        parts: ``PACKED``, int32 [out, words]; a word has 4 or 8 weights, the first one in the lowest bits, each raised
            by half its range. ``SCALE``, [out, groups].
        inputs: weights of an output.
        stored: how they are stored.

    Raises:
        CheckpointError: the sizes contradict one another, or a scale is not a number. It does not name the layer.
    """
    packed, scale = parts[PACKED], parts[SCALE]
    groups = 1 if stored.group_size is None else -(-inputs // stored.group_size)
    words = -(-inputs * stored.bits // 32)
    if packed.dtype != torch.int32 or packed.ndim != 2 or packed.shape[1] != words:
        raise CheckpointError(f"{PACKED} is {packed.dtype} {list(packed.shape)} instead of int32 [out, {words}]")
    if list(scale.shape) != [len(packed), groups]:
        raise CheckpointError(f"{SCALE} has {list(scale.shape)} instead of {[len(packed), groups]}")
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(f"{SCALE} has nan or inf; the weights are damaged")
    of_bytes = packed.contiguous().view(torch.uint8)  # little-endian
    if stored.bits == 8:
        return QuantizedWeight(8, (of_bytes[:, :inputs] ^ 128).view(torch.int8).contiguous(), scale.float())
    values = _halves(of_bytes)[:, :inputs].contiguous()
    count = -(-inputs // GROUP)
    scales = scale.repeat_interleave(count if stored.group_size is None else stored.group_size // GROUP, dim=1)
    exact = torch.bfloat16 if scale.dtype == torch.bfloat16 else torch.float32
    return QuantizedWeight(4, values, scales[:, :count].to(exact).contiguous())


def _halves(of_bytes: Tensor) -> Tensor:
    """Both numbers of 4 bits in each byte of ``of_bytes`` [out, bytes], int8 [out, 2 * bytes], the lower one first.

    A chunk stays in the processor's cache, so this takes a third of the time of whole tensors.
    """
    pairs = torch.empty(of_bytes.shape, dtype=torch.int16)
    for chunk, target in zip(of_bytes.split(CHUNK), pairs.split(CHUNK), strict=True):
        target.copy_(chunk)
        target.bitwise_or_(target << 4).bitwise_and_(0x0F0F)
        target.view(torch.int8).sub_(8)
    return pairs.view(torch.int8)


def pack(weight: QuantizedWeight | Fp8Weight) -> dict[str, Tensor]:
    """The parts of a layer from its weight; the inverse of ``unpack`` and ``unpack_fp8``."""
    if isinstance(weight, Fp8Weight):
        return {IN_FP8: weight.values, SCALE: weight.scales}
    per_word = 32 // weight.bits
    raised = pad(weight.values.view(torch.uint8) + 2 ** (weight.bits - 1), (0, -weight.values.shape[1] % per_word))
    if weight.bits == 4:
        raised = raised[:, ::2] | raised[:, 1::2] << 4
    shape = torch.tensor(weight.values.shape)
    return {PACKED: raised.contiguous().view(torch.int32), SCALE: weight.scales, SHAPE: shape}


def unpack_fp8(parts: Mapping[str, Tensor], inputs: int, _: StoredQuantization) -> Fp8Weight:
    """The weight of a layer in float8.

    Args:
        parts: ``IN_FP8``, float8_e4m3fn [out, in]. ``SCALE``, [out, 1], or one for all outputs.
        inputs: weights of an output.

    Raises:
        CheckpointError: as in ``unpack``.
    """
    values, scale = parts[IN_FP8], parts[SCALE]
    if values.dtype != torch.float8_e4m3fn or values.ndim != 2 or values.shape[1] != inputs:
        raise CheckpointError(
            f"{IN_FP8} is {values.dtype} {list(values.shape)} instead of float8_e4m3fn [out, {inputs}]"
        )
    if list(scale.shape) not in ([len(values), 1], [1], []):
        raise CheckpointError(f"{SCALE} has {list(scale.shape)} instead of {[len(values), 1]} or [1]")
    if not bool(torch.isfinite(scale).all()):
        raise CheckpointError(f"{SCALE} has nan or inf; the weights are damaged")
    if bool(((values.view(torch.uint8) & 127) == _NAN).any()):
        raise CheckpointError(f"{IN_FP8} has nan; the weights are damaged")
    return Fp8Weight(values, scale.float().expand(len(values), 1).contiguous())


FP8_LAYOUT = PackedLayout(
    parts=(SCALE, IN_FP8), optional=(), num_outputs=lambda shapes: shapes[IN_FP8][0], unpack=unpack_fp8
)
LAYOUT = PackedLayout(
    parts=(PACKED, SCALE), optional=(SHAPE,), num_outputs=lambda shapes: shapes[PACKED][0], unpack=unpack
)
