"""The integers of a step, copied to the device in one transfer.

The buffer on the device stays in place, so that a CUDA graph captured over a part of it can be replayed for any step of
the same shape.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phi3_serve.engine.adapters.page_table import Mix
from phi3_serve.engine.kernels.contract import (
    MAX_PAGES,
    MAX_SHORT_QUERIES,
    ROWS_PER_TILE,
    AdaptedTiles,
    DeviceKernels,
    GatheredQueries,
    PagedQueries,
)
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.kvcache.slots import cache_slots
from phi3_serve.engine.model.adapter_tiles import TileShape, first_pages, tiles_of

ALIGNMENT = 4  # integers; parts that start at multiples of 16 bytes need only one compiled form of each kernel
NOT_STORED = -1  # the slot of a padding token
_PADDING_SEQUENCE = (0, 0, 0, 0)  # without queries
NUM_HOST_BUFFERS = 2  # the next step is packed into one while the device copies from the other


@dataclass(frozen=True, slots=True)
class StepShape:
    """How many integers of each kind a step has."""

    tokens: int
    logits: int
    sequences: int
    short_tiles: int
    long_tiles: int
    gathered: tuple[GatheredQueries, ...] = ()  # no integers of the buffer
    adapted: TileShape | None = None  # None: no row has an adapter
    adapted_logits: TileShape | None = None

    @classmethod
    def of_decode(cls, rows: int, *, is_adapted: bool = False) -> "StepShape":
        """A step that runs one token of each of ``rows`` sequences, any of which may have adapters."""
        adapted = TileShape(rows, rows, ROWS_PER_TILE[0], MAX_PAGES) if is_adapted else None
        return cls(rows, rows, rows, rows, 0, adapted=adapted)

    @classmethod
    def of_prompt(cls, tokens: int, queries_per_tile: int) -> "StepShape":
        """A step that runs up to ``tokens`` tokens of one sequence, for the logits of the last one at most.

        It has a second sequence, which is padding.
        """
        return cls(tokens, 1, 2, 0, -(-tokens // queries_per_tile))

    @property
    def sizes(self) -> list[int]:
        """The parts of the buffer in their order. The block tables follow them, and then the pages of adapters."""
        sizes = [*[self.tokens] * 4, self.logits, 4 * self.sequences, 2 * self.short_tiles, 2 * self.long_tiles]
        return sizes + [size for tiles in (self.adapted, self.adapted_logits) if tiles for size in tiles.sizes]


@dataclass(frozen=True, slots=True)
class StepIntegers:
    """The parts of a buffer; see ``StepInputs`` and ``PagedQueries``."""

    token_ids: Tensor  # unread tokens are negative; see ``Chunk.token_ids``
    positions: Tensor
    uses_long_factors: Tensor
    slots: Tensor
    logit_rows: Tensor
    queries: PagedQueries
    adapted: AdaptedTiles | None
    adapted_logits: AdaptedTiles | None

    @classmethod
    def of(cls, buffer: Tensor, shape: StepShape) -> "StepIntegers":
        """The parts of ``buffer``, int32 [at least the sum of the sizes]."""
        parts, start = [], 0
        for size in shape.sizes:
            parts.append(buffer[start : start + size])
            start = _aligned(start + size)
        ids, positions, factors, slots, logits, sequences, short, long, *of_adapters = parts
        tables = buffer[start:]
        tiles = (short.view(-1, 2), long.view(-1, 2))
        queries = PagedQueries(sequences.view(-1, 4), tables, *tiles, shape.gathered)
        pages = tables[: len(tables) // 2 * 2].view(-1, 2)
        adapted = [_adapted(tiles, of_adapters, pages) for tiles in (shape.adapted, shape.adapted_logits)]
        return cls(ids, positions, factors, slots, logits, queries, *adapted)


def _adapted(shape: TileShape | None, parts: list[Tensor], pages: Tensor) -> AdaptedTiles | None:
    """Takes its parts from the start of ``parts``."""
    if shape is None:
        return None
    rows, num_tiles, tiles = (parts.pop(0) for _ in shape.sizes)
    return AdaptedTiles(rows, num_tiles, tiles.view(-1, 4), pages, shape.rows_per_tile, shape.pages_per_tile)


class StepBuffer:
    """An int32 buffer on the device, and the pinned buffers that it is filled from."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        """``capacity``: integers."""
        self.on_device = torch.zeros(capacity, dtype=torch.int32, device=device)
        is_pinned = device.type == "cuda"
        self._on_host = [
            torch.zeros(capacity, dtype=torch.int32, pin_memory=is_pinned) for _ in range(NUM_HOST_BUFFERS)
        ]
        self._arrays = [buffer.numpy() for buffer in self._on_host]
        self._copied: list[Any] = [torch.cuda.Event() if is_pinned else None for _ in self._on_host]
        self._next = 0

    def fits(self, count: int) -> bool:
        """Whether ``count`` integers fit into the buffer."""
        return count <= len(self.on_device)

    def fill(self, integers: Any) -> Tensor:
        """The buffer with ``integers``, an int32 array, at its start, or a new one if they do not fit."""
        if not self.fits(len(integers)):
            return torch.from_numpy(integers).to(self.on_device.device)
        number, self._next = self._next, (self._next + 1) % NUM_HOST_BUFFERS
        copied = self._copied[number]
        if copied is not None:
            copied.synchronize()  # steps that choose no tokens can be many ahead of the device
        self._arrays[number][: len(integers)] = integers
        self.on_device[: len(integers)].copy_(self._on_host[number][: len(integers)], non_blocking=True)
        if copied is not None:
            copied.record()
        return self.on_device


def pack_decode(chunks: Sequence[Chunk], rows: int, mixes: Sequence[Mix] | None = None) -> Any:
    """The integers of a step with ``StepShape.of_decode(rows)``, int32. Rows beyond the chunks are padding.

    ``mixes``: the adapters of the chunks; None: the shape has no tiles for adapters.
    """
    padding = rows - len(chunks)
    starts, table_starts, tables = [chunk.start for chunk in chunks], *_block_tables(chunks)
    sequences = [
        (row, 1, start + 1, table) for row, (start, table) in enumerate(zip(starts, table_starts, strict=True))
    ]
    of_adapters: list[list[int]] = []
    if (shape := StepShape.of_decode(rows, is_adapted=mixes is not None).adapted) is not None and mixes is not None:
        firsts = _add_pages(tables, mixes)
        of_adapters = tiles_of(mixes, [1] * len(chunks), firsts, shape.rows_per_tile).integers(shape)
    return _joined(
        [chunk.token_ids[0] for chunk in chunks] + [0] * padding,
        starts + [0] * padding,
        [chunk.uses_long_factors[0] for chunk in chunks] + [0] * padding,
        [chunk.sequence.slot(chunk.start) for chunk in chunks] + [NOT_STORED] * padding,
        range(rows),
        chain(*sequences, [0] * (4 * padding)),
        chain.from_iterable((row, 0) for row in range(rows)),
        (),
        *of_adapters,
        tables,
    )


def pack_prompt(chunk: Chunk, shape: StepShape, queries_per_tile: int) -> Any:
    """The integers of a step with ``StepShape.of_prompt``, int32. What the chunk leaves is padding.

    ``queries_per_tile``: of the attention's long tiles.
    """
    count, padding = chunk.num_tokens, [0] * (shape.tokens - chunk.num_tokens)
    tiles = [(0, first) for first in range(0, count, queries_per_tile)]
    tiles += [(1, 0)] * (shape.long_tiles - len(tiles))
    table = chunk.sequence.block_table
    return _joined(
        chunk.token_ids + padding,
        [*range(chunk.start, chunk.end), *padding],
        [*chunk.uses_long_factors, *padding],
        cache_slots(table, chunk.start, chunk.end).tolist() + [NOT_STORED] * len(padding),
        [max(0, count - 1)],
        (0, count, chunk.end, 0, *_PADDING_SEQUENCE),
        (),
        chain.from_iterable(tiles),
        table,
    )


def pack(
    chunks: Sequence[Chunk],
    logit_rows: Sequence[int],
    kernels: DeviceKernels,
    mixes: Sequence[Mix] | None = None,
    *,
    adapts_logits: bool = False,
) -> tuple[StepShape, Any]:
    """The integers of any step, int32, and its shape.

    Args:
        chunks: in the order of their tokens in the batch.
        logit_rows: the rows whose logits are wanted.
        kernels: that compute the attention.
        mixes: the adapters of the chunks; None: no chunk has any.
        adapts_logits: whether an adapter changes the head.
    """
    long_chunks = [chunk for chunk in chunks if chunk.num_tokens > MAX_SHORT_QUERIES]

    def is_gathered(chunk: Chunk) -> bool:
        """Several long chunks share a launch of the tiles; gathered, they would run one after another."""
        return len(long_chunks) == 1 and chunk is long_chunks[0] and kernels.gathers(chunk.num_tokens, chunk.end)

    short, long = kernels.queries_per_tile
    short_tiles = _tiles(chunks, short, lambda chunk: chunk.num_tokens <= MAX_SHORT_QUERIES)
    long_tiles = _tiles(chunks, long, lambda chunk: chunk.num_tokens > MAX_SHORT_QUERIES and not is_gathered(chunk))
    table_starts, tables = _block_tables(chunks)
    rows = np.cumsum([0, *(chunk.num_tokens for chunk in chunks)])
    sequences = [
        (row, chunk.num_tokens, chunk.end, table)
        for row, chunk, table in zip(rows[:-1].tolist(), chunks, table_starts, strict=True)
    ]
    gathered = [
        GatheredQueries(*numbers) for numbers, chunk in zip(sequences, chunks, strict=True) if is_gathered(chunk)
    ]
    adapted = []
    if mixes is not None:
        firsts = _add_pages(tables, mixes)
        rows_per_tile = ROWS_PER_TILE[bool(long_tiles or gathered)]
        adapted.append(tiles_of(mixes, [chunk.num_tokens for chunk in chunks], firsts, rows_per_tile))
        if adapts_logits:
            adapted.append(tiles_of(mixes, [chunk.num_logits for chunk in chunks], firsts, ROWS_PER_TILE[0]))
    shape = StepShape(
        int(rows[-1]),
        len(logit_rows),
        len(chunks),
        len(short_tiles),
        len(long_tiles),
        tuple(gathered),
        *(tiles.shape for tiles in adapted),
    )
    return shape, _joined(
        chain.from_iterable(chunk.token_ids for chunk in chunks),
        chain.from_iterable(range(chunk.start, chunk.end) for chunk in chunks),
        chain.from_iterable(chunk.uses_long_factors for chunk in chunks),
        np.concatenate([cache_slots(chunk.sequence.block_table, chunk.start, chunk.end) for chunk in chunks]).tolist(),
        logit_rows,
        chain.from_iterable(sequences),
        chain.from_iterable(short_tiles),
        chain.from_iterable(long_tiles),
        *(part for tiles in adapted for part in tiles.integers(tiles.shape)),
        tables,
    )


def _add_pages(tables: "array[int]", mixes: Sequence[Mix]) -> dict[Mix, int]:
    """Add the pages of ``mixes`` behind the block tables; returns where those of each begin, in pairs of integers."""
    if len(tables) % 2:
        tables.append(0)
    firsts = first_pages(mixes, len(tables) // 2)
    for mix in firsts:
        tables.extend(chain.from_iterable(mix))
    return firsts


def _tiles(chunks: Sequence[Chunk], size: int, is_wanted: Callable[[Chunk], bool]) -> list[tuple[int, int]]:
    return [
        (sequence, first)
        for sequence, chunk in enumerate(chunks)
        if is_wanted(chunk)
        for first in range(0, chunk.num_tokens, size)
    ]


def _block_tables(chunks: Sequence[Chunk]) -> tuple[list[int], "array[int]"]:
    """The first entry of each sequence, and the entries of all."""
    starts, tables = [], array("i")
    for chunk in chunks:
        starts.append(len(tables))
        tables.extend(chunk.sequence.block_table)
    return starts, tables


def _joined(*parts: Iterable[int]) -> Any:
    """``parts`` as one int32 array, in which each starts at a multiple of the alignment."""
    integers = array("i")
    for part in parts:
        integers.extend([0] * (_aligned(len(integers)) - len(integers)))
        integers.extend(part)
    return np.frombuffer(integers, dtype=np.int32)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
