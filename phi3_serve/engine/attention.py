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

FEWEST_IN_GRID = 3  # queries; fewer are as fast one by one
MOST_IN_VAIN = 1.5  # keys read for each key that counts

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


@dataclass(frozen=True, slots=True)
class Grid:
    """Single queries whose keys begin at equal distances in the cache, so that one call reads them all in place.

    Requests of one size get rooms of one size side by side, so this is what a batch of them looks like. Where a place
    of the grid is nobody's, or keys end early, a mask hides what is read in vain.
    """

    start: int  # position of the first key
    pitch: int  # positions from the first key of one place to that of the next
    length: int  # keys read at each place
    sources: Tensor  # [places], the query that each place answers; any for a place that is nobody's
    places: Tensor  # [queries], where each query's answer is
    queries: Tensor  # [queries], their rows of the batch
    mask: Tensor | None  # added to the scores, [places, 1, 1, length]


class AttentionPlan:
    """All reads of one step."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        *,
        num_slots: int,
        window: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._num_slots = num_slots  # positions of the cache
        self._window = window
        self._dtype = dtype
        self._device = device
        self._in_place = device.type == "cpu"
        reads = tuple(self._plan(chunks))
        self.grid = self._grid(reads) if self._in_place else None
        self.reads = reads if self.grid is None else tuple(read for read in reads if not _is_simple(read))

    def _grid(self, reads: Sequence[Read]) -> Grid | None:
        """The grid that all simple reads are on, if there is one and little of it is in vain."""
        simple = [read for read in reads if _is_simple(read)]
        if len(simple) < FEWEST_IN_GRID:
            return None
        spans = [read.spans[0].where for read in simple]
        starts = np.array([span.start for span in spans if isinstance(span, slice)])
        lengths = np.array([span.stop - span.start for span in spans if isinstance(span, slice)])
        first, length = int(starts.min()), int(lengths.max())
        pitch = int(np.diff(np.sort(starts)).min())
        if pitch <= 0 or ((starts - first) % pitch).any():
            return None
        places = (starts - first) // pitch
        num_places = int(places.max()) + 1
        if (
            num_places * length > MOST_IN_VAIN * lengths.sum()
            or first + (num_places - 1) * pitch + length > self._num_slots
        ):
            return None
        sources = np.zeros(num_places, dtype=np.int64)
        sources[places] = np.arange(len(simple))
        seen = np.zeros((num_places, length), dtype=bool)
        seen[places] = np.arange(length) < lengths[:, None]
        seen[:, 0] = True  # somebody has to be seen, also from places that are nobody's
        rows = torch.tensor([read.queries.start for read in simple])
        mask = None if seen.all() else self._added(torch.from_numpy(seen))[0, 0, :, None, None]
        return Grid(first, pitch, length, rows[torch.from_numpy(sources)], torch.from_numpy(places), rows, mask)

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

    def _visibility(
        self, chunks: list[Chunk], places: list["np.ndarray[tuple[int], np.dtype[np.int64]]"], count: int
    ) -> Tensor:
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

    There may be several query heads for each head of keys. Returns [tokens, heads, dim]; zeros for queries that the
    plan does not read.
    """
    output = torch.zeros_like(query)
    if plan.grid is not None:
        output[plan.grid.queries] = _attend_grid(query, keys, values, plan.grid, scale)
    for read in plan.reads:
        q = query[read.queries].transpose(0, 1)[None]  # [1, heads, queries, dim]
        if len(read.spans) == 1:
            answer = _attend(q, keys, values, read.spans[0], scale)[0]
        else:
            answer = _merge([_attend(q, keys, values, span, scale) for span in read.spans])
        output[read.queries] = answer[0].transpose(0, 1)
    return output


def _attend_grid(query: Tensor, keys: Tensor, values: Tensor, grid: Grid, scale: float) -> Tensor:
    """The output of the grid's queries, [queries, heads, dim]."""
    num_heads, _, dim = keys.shape
    size = (len(grid.sources), num_heads, grid.length, dim)
    stride = (grid.pitch * keys.stride(1), keys.stride(0), keys.stride(1), keys.stride(2))
    k, v = (x.as_strided(size, stride, x.storage_offset() + grid.start * x.stride(1)) for x in (keys, values))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    q = query[grid.sources][:, :, None]  # [places, heads, 1, dim]
    answers: Tensor = flash(q, k, v, 0.0, False, attn_mask=grid.mask, scale=scale)[0]
    return answers[grid.places, :, 0]


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
    merged: Tensor = sum(w.to(output.dtype) * output for w, (output, _) in zip(weights, parts, strict=True))
    return merged


def _is_simple(read: Read) -> bool:
    """One query that sees all of one run of keys."""
    is_single = read.queries.stop - read.queries.start == 1 and len(read.spans) == 1
    return is_single and read.spans[0].mask is None and isinstance(read.spans[0].where, slice)
