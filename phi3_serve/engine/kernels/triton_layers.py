"""The kernels of a layer besides attention, in Triton.

Each function allocates its result and launches one kernel. The launch depends on shapes alone, so it can be captured in
a CUDA graph. Numbers are rounded where modeling_phi3.py of transformers 5.23 rounds them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.kv_cache import LARGEST, SMALLEST, KvCache
from phi3_serve.engine.kernels.launch_sizes import cdiv, next_power_of_2

MAX_NORM_WARPS = 16
HEADS_PER_PROGRAM = 16  # with four warps, each thread reads 16 bytes of each half of a 128-dimensional head
_SMALLEST = tl.constexpr(SMALLEST)
_TO_NEAREST_EVEN = tl.constexpr(1.5 * 2**23)  # added to a float32 below 2^22, and subtracted again
SILU_BLOCK = 1024  # columns; with four warps, each thread reads 16 bytes of the gate and of the other half


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See ``contract.LayerKernels``."""
    _check(hidden, delta, weight)
    normed = torch.empty_like(hidden)
    tokens, width = hidden.shape
    if tokens:
        block = next_power_of_2(width)
        num_warps = min(MAX_NORM_WARPS, max(1, block // 256))
        _add_rms_norm[(tokens,)](hidden, delta, weight, normed, epsilon, width, block, num_warps=num_warps)
    return normed


@triton.jit
def _add_rms_norm(hidden, delta, weight, normed, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program for each token."""
    start = tl.program_id(0).to(tl.int64) * WIDTH
    columns = tl.arange(0, BLOCK)
    is_inside = columns < WIDTH
    dtype = hidden.dtype.element_ty
    x = tl.load(hidden + start + columns, mask=is_inside, other=0.0).to(tl.float32)
    x += tl.load(delta + start + columns, mask=is_inside, other=0.0).to(tl.float32)
    w = tl.load(weight + columns, mask=is_inside, other=0.0).to(tl.float32)
    added = x.to(dtype)
    tl.store(hidden + start + columns, added, mask=is_inside)
    x = added.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x) / WIDTH + epsilon)
    tl.store(normed + start + columns, (w * (x * factor).to(dtype).to(tl.float32)).to(dtype), mask=is_inside)


def rotate_and_store(qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
    """See ``contract.LayerKernels``. ``slots`` are int32 or int64; tokens with slot -1 are not stored."""
    _check(qkv, *rotation)
    _check_cache(cache, qkv.dtype)
    tokens, all_heads, dim = qkv.shape
    num_kv_heads = cache.num_kv_heads
    rotary = rotation[0].shape[-1]
    if tokens:
        _rotate_and_store[(tokens, cdiv(all_heads, HEADS_PER_PROGRAM))](
            qkv,
            *rotation,
            slots,
            cache.values,
            cache.scales,
            slots.shape[0],
            cache.values.stride(0),
            all_heads - 2 * num_kv_heads,
            num_kv_heads,
            dim,
            rotary,
            HEADS_PER_PROGRAM,
            next_power_of_2(rotary // 2),
            next_power_of_2(dim - rotary),
            LARGEST.get(cache.values.dtype, 0.0),
            num_warps=4,
            enable_fp_fusion=False,  # transformers rounds each product
        )


@triton.jit(do_not_specialize=["num_slots"], do_not_specialize_on_alignment=["slots"])
def _rotate_and_store(  # type: ignore[no-untyped-def]
    qkv,
    cosine,
    sine,
    slots,
    cache,
    scales,
    num_slots,
    cache_head_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROTARY: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    LARGEST_VALUE: tl.constexpr,
):
    """One program for each token and HEADS_BLOCK heads of its queries, keys and values.

    LARGEST_VALUE is that of a cache in 8 bits, or 0. It is rounded as ``kv_cache.rounded`` does.
    """
    HALF: tl.constexpr = ROTARY // 2
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK))[:, None]
    slot = tl.load(slots + token, mask=token < num_slots, other=-1).to(tl.int64)
    is_rotated = head < HEADS + KV_HEADS
    is_stored = (head >= HEADS) & (head < HEADS + 2 * KV_HEADS) & (slot >= 0)
    source = qkv + token * ((HEADS + 2 * KV_HEADS) * DIM) + head * DIM
    target = cache + (head - HEADS).to(tl.int64) * cache_head_stride + slot * DIM
    dtype = qkv.dtype.element_ty

    column = tl.arange(0, HALF_BLOCK)
    is_column = (column < HALF)[None, :]
    is_inside = (head < HEADS + 2 * KV_HEADS) & is_column
    low = tl.load(source + column[None, :], mask=is_inside, other=0.0)
    high = tl.load(source + HALF + column[None, :], mask=is_inside, other=0.0)
    angle = token * ROTARY + column
    low_cosine = tl.load(cosine + angle, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    high_cosine = tl.load(cosine + angle + HALF, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    low_sine = tl.load(sine + angle, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    high_sine = tl.load(sine + angle + HALF, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    x = low.to(tl.float32)
    y = high.to(tl.float32)
    rotated_low = (x * low_cosine).to(dtype).to(tl.float32) + (y * low_sine).to(dtype).to(tl.float32)
    rotated_high = (y * high_cosine).to(dtype).to(tl.float32) + (x * high_sine).to(dtype).to(tl.float32)
    low = tl.where(is_rotated, rotated_low.to(dtype), low)
    high = tl.where(is_rotated, rotated_high.to(dtype), high)
    tl.store(source + column[None, :], low, mask=is_rotated & is_column)
    tl.store(source + HALF + column[None, :], high, mask=is_rotated & is_column)
    rest = column[None, :]
    unrotated = low
    if ROTARY < DIM:
        rest = ROTARY + tl.arange(0, REST_BLOCK)[None, :]
        unrotated = tl.load(source + rest, mask=is_stored & (rest < DIM), other=0.0)
    if LARGEST_VALUE > 0:
        largest = tl.maximum(_largest(low), _largest(high))
        not_finite = _zero_or_nan(low) + _zero_or_nan(high)
        if ROTARY < DIM:
            largest = tl.maximum(largest, _largest(unrotated))
            not_finite += _zero_or_nan(unrotated)
        is_zero = largest < _SMALLEST
        inverse = tl.where(is_zero, 0.0, tl.div_rn(LARGEST_VALUE, tl.where(is_zero, 1.0, largest)))
        scale = tl.where(is_zero, 0.0, largest * (1.0 / LARGEST_VALUE)) + not_finite
        tl.store(scales + (head - HEADS).to(tl.int64) * (cache_head_stride // DIM) + slot, scale, mask=is_stored)
        low = _rounded(low, inverse, cache.dtype.element_ty)
        high = _rounded(high, inverse, cache.dtype.element_ty)
        if ROTARY < DIM:
            unrotated = _rounded(unrotated, inverse, cache.dtype.element_ty)
    tl.store(target + column[None, :], low, mask=is_stored & is_column)
    tl.store(target + HALF + column[None, :], high, mask=is_stored & is_column)
    if ROTARY < DIM:
        tl.store(target + rest, unrotated, mask=is_stored & (rest < DIM))


@triton.jit
def _largest(x):  # type: ignore[no-untyped-def]
    """The largest absolute number of each row, [rows, 1]."""
    return tl.max(tl.abs(x.to(tl.float32)), 1)[:, None]


@triton.jit
def _zero_or_nan(x):  # type: ignore[no-untyped-def]
    """0 for each row whose numbers are finite, otherwise nan, [rows, 1]."""
    return tl.sum(x.to(tl.float32) * 0.0, 1)[:, None]


@triton.jit
def _rounded(x, inverse, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """``x`` times ``inverse`` in an 8-bit dtype; halves become even."""
    scaled = x.to(tl.float32) * inverse
    if tl.int8 == DTYPE:
        scaled = (scaled + _TO_NEAREST_EVEN) - _TO_NEAREST_EVEN
    return scaled.to(DTYPE)


def silu_product(gate_up: Tensor) -> Tensor:
    """See ``contract.LayerKernels``."""
    _check(gate_up)
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    product = gate_up.new_empty(tokens, width)
    if tokens:
        _silu_product[(tokens, cdiv(width, SILU_BLOCK))](gate_up, product, width, SILU_BLOCK, num_warps=4)
    return product


@triton.jit
def _silu_product(gate_up, product, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """One program for each token and BLOCK columns."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = column < WIDTH
    gate = tl.load(gate_up + token * 2 * WIDTH + column, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * 2 * WIDTH + WIDTH + column, mask=is_inside, other=0.0).to(tl.float32)
    dtype = product.dtype.element_ty
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype)
    tl.store(product + token * WIDTH + column, (silu.to(tl.float32) * up).to(dtype), mask=is_inside)


def _check(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype != tensors[0].dtype or not tensor.is_contiguous():
            raise TypeError(
                f"expected contiguous {tensors[0].dtype} tensors, got {tensor.dtype} with strides {tensor.stride()}"
            )


def _check_cache(cache: KvCache, dtype: torch.dtype) -> None:
    values, scales = cache.values, cache.scales
    fits = values.dtype == dtype if scales is None else values.dtype in LARGEST
    if not fits or not values.is_contiguous() or not (scales is None or scales.is_contiguous()):
        raise TypeError(
            f"expected a contiguous cache in {dtype}, or in 8 bits with scales, got {values.dtype} with strides "
            f"{values.stride()}"
        )
