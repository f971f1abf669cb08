"""Attention over the paged cache, planned on the host.

A plan is made once a step from the block tables, and every layer follows it. Single queries, as in decoding, are left
to a kernel. A longer chunk of a prompt is one call of torch's attention over the cached keys before the chunk and the
chunk's own keys, or over the cache alone if it has 8 bits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from phi3_serve.engine.kernels.contract import MAX_SHORT_QUERIES, AttentionRow, RowAttention
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.kvcache.slots import cache_slots


@dataclass(frozen=True, slots=True)
class _PromptChunk:
    """The queries of a chunk, which are adjacent in the batch, and the keys that they see."""

    queries: slice
    slots: Tensor | None  # of the keys to read from the cache, [keys]: those before the chunk, or all in 8 bits
    mask: Tensor | None  # added to the scores, [1, 1, queries, keys]; None: each query sees all keys up to its own


class ChunkedAttention:
    """``contract.AttentionPlan``: which queries see which keys in one step."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        of_rows: Callable[[Sequence[AttentionRow]], RowAttention],
        *,
        window: int | None,
        cache: KvCache,
    ) -> None:
        """See ``contract.Kernels.plan_attention``. ``of_rows`` prepares the attention of single queries."""
        self._window = window
        self._device = cache.device
        self._dtype = cache.dtype
        self._reads_all = cache.scales is not None
        rows: list[AttentionRow] = []
        self._prompt_chunks: list[_PromptChunk] = []
        start = 0
        for chunk in chunks:
            if chunk.num_tokens <= MAX_SHORT_QUERIES:
                rows += self._rows(chunk, start)
            else:
                self._prompt_chunks.append(self._prompt_chunk(chunk, start))
            start += chunk.num_tokens
        self._num_tokens = start
        self._single_queries = of_rows(rows) if rows else None

    def attend(self, qkv: Tensor, cache: KvCache, scale: float) -> Tensor:
        """See ``contract.AttentionPlan``."""
        num_heads = qkv.shape[1] - 2 * cache.num_kv_heads
        output = qkv.new_empty(len(qkv), num_heads, qkv.shape[2])
        if self._num_tokens < len(qkv):
            output[self._num_tokens :] = 0
        if self._single_queries is not None:
            self._single_queries.attend(qkv[:, :num_heads], cache, output, scale)
        for chunk in self._prompt_chunks:
            output[chunk.queries] = _attend(qkv[chunk.queries].transpose(0, 1), cache, chunk, scale).transpose(0, 1)
        return output.flatten(1)

    def _rows(self, chunk: Chunk, start: int) -> Iterator[AttentionRow]:
        for index in range(chunk.num_tokens):
            end = chunk.start + index + 1
            yield AttentionRow(start + index, chunk.sequence.block_table, self._first_seen(end - 1), end)

    def _prompt_chunk(self, chunk: Chunk, start: int) -> _PromptChunk:
        first = self._first_seen(chunk.start)
        slots = None
        if self._reads_all or first < chunk.start:
            end = chunk.end if self._reads_all else chunk.start
            slots = torch.from_numpy(cache_slots(chunk.sequence.block_table, first, end)).to(self._device)
        is_causal = first == chunk.start and (self._window is None or chunk.num_tokens <= self._window)
        mask = None if is_causal else self._mask(chunk, first)
        return _PromptChunk(slice(start, start + chunk.num_tokens), slots, mask)

    def _first_seen(self, position: int) -> int:
        return 0 if self._window is None else max(0, position - self._window + 1)

    def _mask(self, chunk: Chunk, first: int) -> Tensor:
        keys = torch.arange(first, chunk.end, device=self._device)
        queries = torch.arange(chunk.start, chunk.end, device=self._device)[:, None]
        is_seen = keys <= queries
        if self._window is not None:
            is_seen &= keys > queries - self._window
        mask = torch.zeros(is_seen.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~is_seen, -math.inf)[None, None]


def _attend(qkv: Tensor, cache: KvCache, chunk: _PromptChunk, scale: float) -> Tensor:
    """``qkv`` is [heads + 2 * kv_heads, queries, dim]; returns [heads, queries, dim]."""
    num_kv_heads = cache.num_kv_heads
    query, keys, values = qkv.split((len(qkv) - 2 * num_kv_heads, num_kv_heads, num_kv_heads))
    if cache.scales is not None and chunk.slots is not None:
        keys, values = cache.read(chunk.slots)
    elif chunk.slots is not None:
        keys_before, values_before = cache.read(chunk.slots)
        keys, values = torch.cat((keys_before, keys), 1), torch.cat((values_before, values), 1)
    attended = scaled_dot_product_attention(
        query[None].to(cache.dtype),
        keys[None],
        values[None],
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=len(query) != num_kv_heads,
    )
    return attended[0]
