"""Attention over the paged cache: what each step reads from where, and the one function that reads it.

The plan is made once a step from block tables; the layers only follow it. Two homes: on a CPU runs of adjacent
blocks are read in place, several runs are merged by their log-sum-exp, and the beams of a request are read as one
span under a mask, so that what they share is read once. Elsewhere the tokens are gathered first.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from phi3_serve.engine.blocks import BLOCK_SIZE
from phi3_serve.engine.scheduler import Chunk

MOST_SPANS = 8  # more runs than these are gathered
WIDEST_GAP = 8  # blocks of others between two of a family that are read along and masked
LARGEST_MASK = 1 << 20  # elements; beyond, cached and new tokens are read one after the other

Where = slice | Tensor  # positions of the cache


@dataclass(frozen=True, slots=True)
class Span:
    """Keys that some queries see."""

    where: Where
    mask: Tensor | None = None  # added to the scores, [1, 1, queries, keys]
    is_causal: bool = False
    blind: Tensor | None = None  # added to the log-sum-exp, [queries]: -inf for those that see none of the keys


@dataclass(frozen=True, slots=True)
class Read:
    """Queries next to each other in the batch, and the keys they see."""

    queries: slice
    spans: tuple[Span, ...]


class AttentionPlan:
    """All reads of one step."""

    def __init__(self, chunks: Sequence[Chunk], *, window: int | None, dtype: torch.dtype, device: torch.device) -> None:
        self._window = window
        self._dtype = dtype
        self._device = device
        self._in_place = device.type == "cpu"
        self.reads = tuple(self._plan(chunks))

    def _plan(self, chunks: Sequence[Chunk]) -> Iterator[Read]:
        first = 0
        for _, group in groupby(chunks, key=lambda c: (id(c.family), c.num_tokens == 1)):
            members = list(group)
            if len(members) > 1 and members[0].num_tokens == 1:
                yield Read(slice(first, first + len(members)), self._of_family(members))
                first += len(members)
                continue
            for chunk in members:
                yield Read(slice(first, first + chunk.num_tokens), self._of_chunk(chunk))
                first += chunk.num_tokens

    def _of_chunk(self, chunk: Chunk) -> tuple[Span, ...]:
        start, end = chunk.start, chunk.end
        first = 0 if self._window is None else max(0, start - self._window + 1)
        if chunk.num_tokens == 1:
            return self._spans(chunk, first, end)
        is_windowed = self._window is not None and end > self._window
        if start == 0 and not is_windowed:
            return (Span(self._one(chunk, 0, end), is_causal=True),)
        if not is_windowed and self._in_place and chunk.num_tokens * end > LARGEST_MASK:
            return (*self._spans(chunk, 0, start), Span(self._one(chunk, start, end), is_causal=True))
        return (Span(self._one(chunk, first, end), mask=self._mask(chunk, first)),)

    def _spans(self, chunk: Chunk, first: int, end: int) -> tuple[Span, ...]:
        slices = chunk.sequence.table.spans(first, end)
        if self._in_place and len(slices) <= MOST_SPANS:
            return tuple(Span(where) for where in slices)
        return (Span(self._one(chunk, first, end)),)

    def _one(self, chunk: Chunk, first: int, end: int) -> Where:
        slices = chunk.sequence.table.spans(first, end)
        if len(slices) == 1:
            return slices[0]
        return torch.cat([torch.arange(s.start, s.stop) for s in slices]).to(self._device)

    def _mask(self, chunk: Chunk, first: int) -> Tensor:
        """What each of several queries sees of the keys from position ``first`` on."""
        keys = torch.arange(first, chunk.end, device=self._device)
        queries = torch.arange(chunk.start, chunk.end, device=self._device)[:, None]
        is_seen = keys <= queries
        if self._window is not None:
            is_seen &= keys > queries - self._window
        return self._added(is_seen)

    def _of_family(self, chunks: list[Chunk]) -> tuple[Span, ...]:
        """Sequences that share blocks: everything between their blocks is read once, each sees its own."""
        tables = [np.array(chunk.sequence.table.blocks[: -(-chunk.end // BLOCK_SIZE)]) for chunk in chunks]
        blocks = np.unique(np.concatenate(tables))
        cuts = np.flatnonzero(np.diff(blocks) > WIDEST_GAP) + 1
        bounds = [(int(part[0]), int(part[-1]) + 1) for part in np.split(blocks, cuts)]
        if not self._in_place or len(bounds) > MOST_SPANS:
            where = (torch.from_numpy(blocks)[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten()
            mask = self._visibility(chunks, [np.searchsorted(blocks, table) for table in tables], len(blocks))
            return (Span(where.to(self._device), mask=self._added(mask)),)
        spans = []
        for low, high in bounds:
            local = [np.where((table >= low) & (table < high), table - low, high - low) for table in tables]
            mask = self._visibility(chunks, local, high - low)
            blind = self._added(mask.any(-1))[0, 0]
            spans.append(Span(slice(low * BLOCK_SIZE, high * BLOCK_SIZE), mask=self._added(mask), blind=blind))
        return tuple(spans)

    def _visibility(self, chunks: list[Chunk], places: list["np.ndarray[tuple[int], np.dtype[np.int64]]"], count: int) -> Tensor:
        """Which of the tokens of ``count`` blocks each sequence sees; ``places`` are its blocks among them."""
        seen = np.zeros((len(chunks), count + 1, BLOCK_SIZE), dtype=bool)  # one block more, for what is elsewhere
        for row, (chunk, place) in enumerate(zip(chunks, places, strict=True)):
            seen[row, place] = True
            if rest := chunk.end % BLOCK_SIZE:
                seen[row, place[-1], rest:] = False
            if self._window is not None and chunk.end > self._window:
                hidden = chunk.end - self._window
                seen[row, place[: hidden // BLOCK_SIZE]] = False
                seen[row, place[hidden // BLOCK_SIZE], : hidden % BLOCK_SIZE] = False
        return torch.from_numpy(seen[:, :count].reshape(len(chunks), -1)).to(self._device)

    def _added(self, is_seen: Tensor) -> Tensor:
        hidden = torch.zeros(is_seen.shape, dtype=self._dtype, device=self._device)
        return hidden.masked_fill_(~is_seen, -math.inf)[None, None]


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Softmax attention of ``query`` [tokens, heads, dim] over cached ``keys`` and ``values`` [heads, positions, dim].

    There may be several query heads for each head of keys. Returns [tokens, heads, dim].
    """
    outputs = []
    for read in plan.reads:
        q = query[read.queries].transpose(0, 1)[None]  # [1, heads, queries, dim]
        if len(read.spans) == 1:
            outputs.append(_attend(q, keys, values, read.spans[0], scale)[0])
        else:
            outputs.append(_merge([_attend(q, keys, values, span, scale) for span in read.spans]))
    together = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return together[0].transpose(0, 1)


def _attend(q: Tensor, keys: Tensor, values: Tensor, span: Span, scale: float) -> tuple[Tensor, Tensor]:
    """The output [1, heads, queries, dim] and, on a CPU, the log-sum-exp of the scores [1, heads, queries]."""
    k, v = keys[:, span.where][None], values[:, span.where][None]
    if q.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        output, lse = flash(q, k, v, 0.0, span.is_causal, attn_mask=span.mask, scale=scale)
        return output, lse if span.blind is None else lse + span.blind
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=span.mask, is_causal=span.is_causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return output, output


def _merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One softmax of several (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867)."""
    weights = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    return sum(weight.to(output.dtype) * output for weight, (output, _) in zip(weights, parts, strict=True))  # type: ignore[return-value]
