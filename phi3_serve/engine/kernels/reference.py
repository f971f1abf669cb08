"""The kernels as torch operations, for any device and dtype."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear, pad, scaled_dot_product_attention, silu

from phi3_serve.engine.kernels.chunked_attention import ChunkedAttention
from phi3_serve.engine.kernels.contract import (
    KERNELS,
    MAX_SHORT_QUERIES,
    AdaptedRows,
    AdaptedTiles,
    AdapterPlan,
    AttentionPlan,
    AttentionRow,
    Fp8Weight,
    PackedWeight,
    PagedLowRank,
    PagedQueries,
    RowAttention,
    Weight,
)
from phi3_serve.engine.kernels.kv_cache import KvCache, rounded
from phi3_serve.engine.kernels.low_rank_products import LowRankProducts, add_paged
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.kvcache.slots import cache_slots


class ReferenceKernels:
    """``contract.Kernels`` and ``contract.DeviceKernels`` in torch."""

    name = "reference"
    queries_per_tile = (MAX_SHORT_QUERIES, 16)
    flash_attention = ""  # see ``EngineInfo``

    def __init__(self, reason: str | None = None) -> None:
        """``reason``: why these kernels are used in place of faster ones."""
        self.replaced: Mapping[str, str] = {} if reason is None else dict.fromkeys(KERNELS, reason)

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See ``contract.Kernels``."""
        hidden += delta
        x = hidden.float()
        factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        return weight * (x * factor).to(hidden.dtype)

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        """See ``contract.Kernels``."""
        rotary = rotation[0].shape[-1]
        num_kv_heads = cache.num_kv_heads
        _rotate(qkv[:, :-num_kv_heads, :rotary], *rotation)
        rows = qkv[: len(slots), -2 * num_kv_heads :]
        if slots.dtype == torch.int32:  # of a DeviceRunner: -1 marks padding
            rows, slots = rows[slots >= 0], slots[slots >= 0].long()
        cache.store(slots, rows)

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """See ``contract.Kernels``."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    def pack(self, weight: Weight) -> PackedWeight:
        """See ``contract.Kernels``."""
        return _Dequantizing(weight)

    def pack_fp8(self, weight: Fp8Weight) -> PackedWeight:
        """See ``contract.Kernels``."""
        return _RoundingRows(weight)

    def plan_attention(self, chunks: Sequence[Chunk], *, window: int | None, cache: KvCache) -> AttentionPlan:
        """See ``contract.Kernels``."""
        return ChunkedAttention(chunks, lambda rows: self.of_rows(rows, cache), window=window, cache=cache)

    def plan_adapters(self, rows: Sequence[AdaptedRows]) -> AdapterPlan:
        """See ``contract.Kernels``."""
        return LowRankProducts(rows)

    def of_rows(self, rows: Sequence[AttentionRow], cache: KvCache) -> RowAttention:
        """Prepare the attention of single queries over caches with the dtype and the device of ``cache``."""
        return _PaddedAttention(rows, cache.device)

    def gathers(self, num_queries: int, num_keys: int) -> bool:
        """No: ``attend`` needs no tiles."""
        return False

    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        """See ``contract.DeviceKernels``. It waits for the device, so it cannot be captured in a CUDA graph."""
        num_heads = qkv.shape[1] - 2 * cache.num_kv_heads
        output = qkv.new_zeros(len(qkv), num_heads, qkv.shape[2])
        offsets = torch.arange(BLOCK_SIZE, device=qkv.device)
        for row, count, end, table in queries.sequences.tolist():
            if not count:
                continue
            first = 0 if window is None else max(0, end - count - window + 1) // BLOCK_SIZE * BLOCK_SIZE
            blocks = queries.block_tables[table + first // BLOCK_SIZE : table + -(-end // BLOCK_SIZE)].long()
            slots = (blocks[:, None] * BLOCK_SIZE + offsets).flatten()[: end - first]
            keys, values = cache.read(slots)
            attended = scaled_dot_product_attention(
                qkv[row : row + count, :num_heads].transpose(0, 1)[None].to(cache.dtype),
                keys[None],
                values[None],
                attn_mask=_is_seen(count, first, end, window, qkv.device),
                scale=scale,
                enable_gqa=True,
            )
            output[row : row + count] = attended[0].transpose(0, 1)  # rounded to its dtype
        return output.flatten(1)

    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        """See ``contract.DeviceKernels``. Like ``attend``, it waits for the device."""
        add_paged(x, output, change, tiles)


class _Dequantizing:
    """``contract.PackedWeight`` that makes the whole weight in float32 in each call."""

    def __init__(self, weight: Weight) -> None:
        self._inputs = weight.values.shape[1]
        self._least = int(weight.values.min())
        self._halved = weight
        if weight.bits == 4:  # two in a byte
            raised = pad(weight.values - self._least, (0, self._inputs % 2))
            even, odd = raised.view(len(raised), -1, 2).unbind(2)
            self._halved = replace(weight, values=odd << 4 | even)

    @property
    def num_bytes(self) -> int:
        """See ``contract.PackedWeight``."""
        return self._halved.num_bytes

    def multiply(self, x: Tensor) -> Tensor:
        """See ``contract.PackedWeight``."""
        return linear(x.float(), self.unpacked().dequantized()).to(x.dtype)

    def unpacked(self) -> Weight:
        """See ``contract.PackedWeight``."""
        if self._halved.bits == 8:
            return self._halved
        even, odd = self._halved.values & 15, self._halved.values >> 4 & 15  # a shift keeps the sign
        values = torch.stack([even, odd], dim=2).flatten(1)[:, : self._inputs] + self._least
        return replace(self._halved, values=values)


class _RoundingRows:
    """``contract.PackedWeight`` in float8, whose numbers are multiplied in float32. Their products are exact there."""

    def __init__(self, weight: Fp8Weight) -> None:
        self._weight = weight

    @property
    def num_bytes(self) -> int:
        """See ``contract.PackedWeight``."""
        return self._weight.values.nbytes + self._weight.scales.nbytes

    def multiply(self, x: Tensor) -> Tensor:
        """See ``contract.PackedWeight``."""
        values, scales = rounded(x, self._weight.values.dtype)
        products = linear(values.float(), self._weight.values.float())
        return products.mul_(scales[:, None]).mul_(self._weight.scales.T).to(x.dtype)

    def unpacked(self) -> Fp8Weight:
        """See ``contract.PackedWeight``."""
        return self._weight


def _is_seen(count: int, first: int, end: int, window: int | None, device: torch.device) -> Tensor:
    """Whether each of the last ``count`` positions before ``end`` sees each key from ``first`` on, [count, keys]."""
    keys = torch.arange(first, end, device=device)
    positions = torch.arange(end - count, end, device=device)[:, None]
    is_seen = keys <= positions
    return is_seen if window is None else is_seen & (keys > positions - window)


class _PaddedAttention:
    """Gathers rows of similar length into one tensor, with shorter ones padded and masked."""

    def __init__(self, rows: Sequence[AttentionRow], device: torch.device) -> None:
        self._groups = [_Group.of(list(group), device) for _, group in _by_length(rows)]

    def attend(self, query: Tensor, cache: KvCache, output: Tensor, scale: float) -> None:
        """See ``contract.RowAttention``."""
        for group in self._groups:
            keys, values = (part.transpose(0, 1) for part in cache.read(group.slots))
            queries = query[group.queries][:, :, None].to(cache.dtype)
            attended = scaled_dot_product_attention(
                queries, keys, values, attn_mask=group.mask, scale=scale, enable_gqa=True
            )
            output[group.queries] = attended[:, :, 0].to(output.dtype)


def _by_length(rows: Sequence[AttentionRow]) -> Iterator[tuple[int, Iterator[AttentionRow]]]:
    """Groups whose longest row has less than twice as many keys as the shortest."""
    return groupby(sorted(rows, key=_length), key=lambda row: _length(row).bit_length())


def _length(row: AttentionRow) -> int:
    return row.end - row.first


@dataclass(frozen=True, slots=True)
class _Group:
    queries: Tensor  # [rows]
    slots: Tensor  # [rows, longest]
    mask: Tensor  # True for keys that are seen, [rows, 1, 1, longest]

    @classmethod
    def of(cls, rows: list[AttentionRow], device: torch.device) -> "_Group":
        slots = np.zeros((len(rows), max(map(_length, rows))), dtype=np.int64)
        is_seen = np.zeros(slots.shape, dtype=bool)
        for index, row in enumerate(rows):
            slots[index, : _length(row)] = cache_slots(row.block_table, row.first, row.end)
            is_seen[index, : _length(row)] = True
        queries = torch.tensor([row.query for row in rows])
        mask = torch.from_numpy(is_seen)[:, None, None]
        return cls(*(t.to(device) for t in (queries, torch.from_numpy(slots), mask)))


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotate ``x`` [tokens, heads, rotary dimensions] in place; the two of a pair are half the dimensions apart."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cosine).add_(swapped.mul_(sine))
