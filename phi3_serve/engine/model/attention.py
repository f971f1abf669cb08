"""Attention over the paged cache: what each step reads from where.

The plan is made once a step from block tables; the layers only follow it. Single queries, one for each sequence that
decodes, are read by ``operations.Reader``; a chunk of a prompt is one call of torch's attention over what is cached
before it and its own keys.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from phi3_serve.engine.kernels.reference import Operations, Row, cache_positions
from phi3_serve.engine.kvcache.chunk import Chunk

MAX_SINGLE = 8  # tokens; a chunk of no more is read query by query


@dataclass(frozen=True, slots=True)
class Read:
    """The queries of a chunk, next to each other in the batch, and the keys they see beside their own."""

    queries: slice
    before: Tensor | None  # positions of the cache
    mask: Tensor | None  # added to the scores, [1, 1, queries, keys]; None: each sees its own key and those before


class AttentionPlan:
    """All reads of one step."""

    def __init__(self, chunks: Sequence[Chunk], operations: Operations, *, window: int | None, like: Tensor) -> None:
        """``like`` is of the type and on the device of the cache."""
        self._window = window
        self._like = like
        rows: list[Row] = []
        self.reads: list[Read] = []
        start = 0
        for chunk in chunks:
            if chunk.num_tokens <= MAX_SINGLE:
                rows += self._singles(chunk, start)
            else:
                self.reads.append(self._read(chunk, start))
            start += chunk.num_tokens
        self.num_tokens = start
        self.reader = operations.reader(rows, like) if rows else None

    def _singles(self, chunk: Chunk, start: int) -> Iterator[Row]:
        for at in range(chunk.num_tokens):
            end = chunk.start + at + 1
            yield Row(start + at, chunk.sequence.table, self._first_seen(end - 1), end)

    def _read(self, chunk: Chunk, start: int) -> Read:
        first = self._first_seen(chunk.start)
        before = None
        if first < chunk.start:
            before = torch.from_numpy(cache_positions(chunk.sequence.table, first, chunk.start)).to(self._like.device)
        is_causal = before is None and (self._window is None or chunk.num_tokens <= self._window)
        return Read(slice(start, start + chunk.num_tokens), before, None if is_causal else self._mask(chunk, first))

    def _first_seen(self, position: int) -> int:
        return 0 if self._window is None else max(0, position - self._window + 1)

    def _mask(self, chunk: Chunk, first: int) -> Tensor:
        keys = torch.arange(first, chunk.end, device=self._like.device)
        queries = torch.arange(chunk.start, chunk.end, device=self._like.device)[:, None]
        is_seen = keys <= queries
        if self._window is not None:
            is_seen &= keys > queries - self._window
        return self._like.new_zeros(is_seen.shape).masked_fill_(~is_seen, -math.inf)[None, None]


def paged_attention(qkv: Tensor, cache: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Softmax attention of the queries in ``qkv`` [tokens, heads + 2 * kv_heads, dim] over cached keys and values.

    ``cache`` [2 * kv_heads, positions, dim] holds the keys' heads, then the values', those of ``qkv`` among them.
    There may be several query heads for each head of keys. Returns [tokens, heads * dim]; zeros for tokens that are
    in no chunk.
    """
    num_heads = qkv.shape[1] - len(cache)
    output = qkv.new_empty(len(qkv), num_heads, qkv.shape[2])
    if plan.num_tokens < len(qkv):
        output[plan.num_tokens :] = 0
    if plan.reader is not None:
        plan.reader.attend(qkv[:, :num_heads], cache, output, scale)
    for read in plan.reads:
        output[read.queries] = _attend(qkv[read.queries].transpose(0, 1), cache, read, scale).transpose(0, 1)
    return output.flatten(1)


def _attend(qkv: Tensor, cache: Tensor, read: Read, scale: float) -> Tensor:
    """``qkv`` is [heads + 2 * kv_heads, queries, dim]; returns [heads, queries, dim]."""
    num_kv_heads = len(cache) // 2
    query, keys, values = qkv.split((len(qkv) - 2 * num_kv_heads, num_kv_heads, num_kv_heads))
    if read.before is not None:
        keys_before, values_before = cache[:, read.before].chunk(2)
        keys, values = torch.cat((keys_before, keys), 1), torch.cat((values_before, values), 1)
    answer = scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=read.mask,
        is_causal=read.mask is None,
        scale=scale,
        enable_gqa=len(query) != num_kv_heads,
    )
    return answer[0]
