"""The memory of the key-value cache, and how keys and values are rounded to 8 bits in it.

Each token has a scale for each head, so it is rounded once, when it is stored, and its numbers depend on nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

KvCacheDtype = Literal["auto", "int8", "fp8"]
EIGHT_BITS: Mapping[KvCacheDtype, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {
    torch.int8: 127.0,
    torch.float8_e4m3fn: 448.0,
}  # values, which the largest number of a token and head becomes
MOVED_BYTES = 64 << 20
SMALLEST = 1e-30  # a token and head without larger numbers is 0; csrc/kv_cache.h and triton_layers.py have the same one


def stored_dtype(wanted: KvCacheDtype, dtype: torch.dtype) -> torch.dtype:
    """What the cache of a model that computes in ``dtype`` has its values in."""
    return dtype if wanted == "auto" else EIGHT_BITS[wanted]


def bytes_of_head(head_dim: int, dtype: torch.dtype, wanted: KvCacheDtype) -> int:
    """Bytes of the key or the value of one token and head, with its scale, in the cache of such a model."""
    of_scale = 0 if wanted == "auto" else torch.float32.itemsize
    return head_dim * stored_dtype(wanted, dtype).itemsize + of_scale


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of all layers or of one: values, times scales if there are any."""

    values: Tensor  # [layers, 2 * kv_heads, slots, dim], or of one layer [2 * kv_heads, slots, dim]: keys, then values
    scales: Tensor | None = None  # float32 [layers, 2 * kv_heads, slots] or [2 * kv_heads, slots]

    @property
    def layers(self) -> list[Self]:
        """The caches of the layers, views of this one."""
        if self.scales is None:
            return [type(self)(values) for values in self.values]
        return [type(self)(values, scales) for values, scales in zip(self.values, self.scales, strict=True)]

    @property
    def num_kv_heads(self) -> int:
        """Heads of the keys, and of the values."""
        return self.values.shape[-3] // 2

    @property
    def dtype(self) -> torch.dtype:
        """That attention computes in on the reference: of the values, or float32 with scales."""
        return self.values.dtype if self.scales is None else torch.float32

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.values.device

    def store(self, slots: Tensor, rows: Tensor) -> None:
        """Store ``rows`` [tokens, 2 * kv_heads, dim] in the slots [tokens] of one layer."""
        rows = rows.transpose(0, 1)
        if self.scales is not None:
            rows, scales = rounded(rows, self.values.dtype)
            self.scales.index_copy_(1, slots, scales)
        _as_bytes(self.values).index_copy_(1, slots, _as_bytes(rows))

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and the values in ``slots`` [...] of one layer, each [kv_heads, ..., dim], in ``dtype``."""
        values = _as_bytes(self.values)[:, slots].view(self.values.dtype)
        if self.scales is not None:
            values = values.float().mul_(self.scales[:, slots, None])
        keys, values = values.chunk(2)
        return keys, values

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks in all layers, (from, to). Those of a layer are read before any of it is written.

        As many layers are copied together as take ``MOVED_BYTES`` in between: a GPU has no memory for all keys of many
        blocks beside its cache.
        """
        if not pairs:
            return
        sources, targets = (
            (torch.tensor(blocks)[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten().to(self.device)
            for blocks in zip(*pairs, strict=True)
        )
        for part in (self.values, self.scales):
            if part is None:
                continue
            of_layer = part[0].nbytes // part.shape[2] * len(sources)
            for layers in _as_bytes(part).split(max(1, MOVED_BYTES // of_layer)):
                layers.index_copy_(2, targets, layers.index_select(2, sources))


def rounded(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``numbers`` [..., dim] in ``dtype``, int8 or float8_e4m3fn, and their scales, float32 [...].

    A number is halfway between two values at most, and of these the even one is taken.
    """
    numbers = numbers.float()
    largest = numbers.abs().amax(-1)
    is_zero = largest < SMALLEST
    scales = (largest * (1 / LARGEST[dtype])).masked_fill_(is_zero, 0)
    # The quotient of a number and a tensor is a product with its reciprocal, which is rounded twice.
    inverse = (torch.full_like(largest, LARGEST[dtype]) / largest).masked_fill_(is_zero, 0)
    values = numbers * inverse[..., None]
    return (values.round_() if dtype == torch.int8 else values).to(dtype), scales


def _as_bytes(tensor: Tensor) -> Tensor:
    """``tensor``; numbers of 8 bits as integers, because torch does not copy float8 by indices."""
    return tensor.view(torch.int8) if tensor.dtype.itemsize == 1 else tensor
