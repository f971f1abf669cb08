"""Attention over the paged cache, in Triton: decoding, drafts and chunks of prompts behind a prefix.

A program computes the queries of one tile for one head of the keys. It reads each visible key once and keeps a running
softmax (FlashAttention-2, https://arxiv.org/abs/2307.08691). The query heads that share a head of the keys are rows of
the same tile ("The Anatomy of a Triton Attention Kernel", https://arxiv.org/abs/2511.11581). Keys are found through
block tables (PagedAttention, https://arxiv.org/abs/2309.06180). If there are too few tiles to fill the device, several
programs share the keys of a tile, and a second kernel combines their results (Flash-Decoding,
https://pytorch.org/blog/flash-decoding/).

The grid depends on shapes and on the config, never on the lengths of sequences. So a launch can be captured in a CUDA
graph. Nothing that changes from step to step is a compile-time constant.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.kv_cache import LARGEST, KvCache
from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

MAX_SPLITS = 32
MIN_TILE = 16  # the smallest side of a matrix product in Triton
DECODE_PROGRAMS = 2  # per multiprocessor at once, as limited by shared memory
MIN_EFFICIENCY = 0.9  # of the best number of splits

_PAGE = tl.constexpr(BLOCK_SIZE)
_MAX_SPLITS = tl.constexpr(MAX_SPLITS)
_LOG2_E = tl.constexpr(math.log2(math.e))
_LOWEST = tl.constexpr(-1e30)  # below all scores, but finite: the difference of two is a number


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """How the work is divided. All but ``num_splits`` are compile-time constants."""

    queries_per_tile: int
    block_m: int  # rows of a tile, at least queries_per_tile * group; a power of two
    block_n: int  # keys that are read together; a power of two
    num_splits: int  # programs that share the keys of a tile, at most MAX_SPLITS
    num_warps: int
    num_stages: int  # iterations whose keys and values are in flight
    pads_dim: bool = True  # whether 96 dimensions are one masked tile of 128, or tiles of 64 and 32
    skips_masks: bool = False  # whether keys that all queries of the tile see are read in a loop of their own

    @classmethod
    def of(cls, queries_per_tile: int, group: int, **others: int) -> "AttentionConfig":
        """With the smallest ``block_m``."""
        block_m = max(MIN_TILE, next_power_of_2(queries_per_tile * group))
        return cls(queries_per_tile, block_m, **others)


@cache  # each layer of a step asks for the same one
def decode_config(
    num_tiles: int, kv_heads: int, group: int, dtype: torch.dtype, multiprocessors: int, *, queries_per_tile: int = 1
) -> AttentionConfig:
    """The config for decoded tokens, with ``queries_per_tile`` > 1 for drafts.

    Decoding is bound by memory. A tile has one row for each head of the group, padded to 16.

    Args:
        num_tiles: of the step.
        kv_heads: heads of the keys.
        group: query heads for each head of the keys.
        dtype: of the queries.
        multiprocessors: of the device.
        queries_per_tile: at most.
    """
    is_half = dtype.itemsize == 2
    return AttentionConfig.of(
        queries_per_tile,
        group,
        block_n=64 if is_half else 32,
        num_splits=balanced_splits(num_tiles * kv_heads, DECODE_PROGRAMS * multiprocessors),
        num_warps=4,
        num_stages=3 if is_half else 2,
    )


@cache
def prefill_config(
    num_tiles: int,
    kv_heads: int,
    group: int,
    dtype: torch.dtype,
    multiprocessors: int,
    *,
    is_before_ampere: bool = False,
) -> AttentionConfig:
    """The config for chunks of prompts; see ``decode_config``. It has ``prefill_queries_per_tile`` queries in a tile.

    ``is_before_ampere``: for a GPU whose programs have 64 KB of shared memory and copy nothing to it ahead.

    Prefill is bound by arithmetic. So there is no padding of 96 dimensions, and masks only where they matter. float32
    has no tensor cores at full precision, and only tests need it: small tiles compile faster.
    """
    is_large = dtype.itemsize == 2 and not is_before_ampere
    return AttentionConfig.of(
        prefill_queries_per_tile(group, dtype, is_before_ampere=is_before_ampere),
        group,
        block_n=64 if is_large else 32,
        num_splits=max(1, min(MAX_SPLITS, multiprocessors // max(1, num_tiles * kv_heads))),
        num_warps=8 if is_large else 4,
        num_stages=3 if is_large else 2,
        pads_dim=False,
        skips_masks=True,
    )


def prefill_queries_per_tile(group: int, dtype: torch.dtype, *, is_before_ampere: bool = False) -> int:
    """How many queries fill a tile of a prompt's chunk; ``is_before_ampere``: see ``prefill_config``."""
    rows = 32 if dtype.itemsize == 4 else 64 if is_before_ampere else 128
    return max(1, rows // group)


def balanced_splits(programs: int, capacity: int) -> int:
    """The fewest splits with which the last wave of programs leaves little of the device idle.

    ``programs`` is their number without splits, ``capacity`` how many run at once. The rule is that of
    num_splits_heuristic in https://github.com/Dao-AILab/flash-attention/blob/main/csrc/flash_attn/flash_api.cpp.
    """

    def efficiency(splits: int) -> float:
        waves = programs * splits / capacity
        return waves / math.ceil(waves)

    if not programs:
        return 1
    best = max(efficiency(splits) for splits in range(1, MAX_SPLITS + 1))
    return next(splits for splits in range(1, MAX_SPLITS + 1) if efficiency(splits) >= MIN_EFFICIENCY * best)


def scratch_size(num_tiles: int, heads: int, head_dim: int, config: AttentionConfig) -> int:
    """How many float32 numbers ``attend`` needs as scratch."""
    if config.num_splits == 1:
        return 0
    return num_tiles * config.queries_per_tile * heads * config.num_splits * (head_dim + 1)


def attend(
    query: Tensor,
    cache: KvCache,
    output: Tensor,
    sequences: Tensor,
    tiles: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    window: int | None,
    config: AttentionConfig,
    scratch: Tensor,
) -> None:
    """Write the softmax attention of the queries in ``tiles`` into their rows of ``output``.

    Scores and sums are float32. The weights of the values are rounded to the dtype of the queries. A cache in 8 bits is
    converted to it, which is exact, and its scales multiply scores and weights. Rows of ``output`` that are in no tile
    are unchanged.

    Args:
        query: [tokens, heads, dim]; tokens may be any distance apart.
        cache: of one layer, contiguous. The slot of a position is block * 16 + position % 16.
        output: [tokens, heads, dim], contiguous.
        sequences: int32 [sequences, 4]: first row of the batch, number of queries, end, first entry in block_tables.
            The queries are the last positions before end. Their keys are in the cache. Without queries: padding.
        tiles: int32 [tiles, 2]: sequence, first query of the tile within its sequence.
        block_tables: int32, block numbers of all sequences. Blocks before the window may have any numbers.
        scale: positive; multiplies the products of queries and keys.
        window: how many keys a query sees, its own included; None: all.
        config: for the shapes and the device.
        scratch: float32, at least ``scratch_size`` numbers; nothing in it needs to be kept.

    Raises:
        ValueError: a tensor or the config does not fit.
    """
    _, heads, dim = query.shape
    kv_heads = cache.num_kv_heads
    group = heads // kv_heads
    _check(query, cache, output, (sequences, tiles, block_tables), config, scratch)
    if not (num_tiles := tiles.shape[0]):
        return
    block_dim, rest_dim = _dim_blocks(dim, config.pads_dim)
    _attend[(num_tiles, kv_heads, config.num_splits)](
        query,
        cache.values,
        cache.values if cache.scales is None else cache.scales,  # None cannot be part of a tuple in the kernel
        output,
        sequences,
        tiles,
        block_tables,
        scratch,
        scale,
        query.stride(0),
        cache.values.stride(0),
        WINDOW=window or 0,
        GROUP=group,
        DIM=dim,
        QUERIES=config.queries_per_tile,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_DIM=block_dim,
        REST_DIM=rest_dim,
        IS_SPLIT=config.num_splits > 1,
        SKIPS_MASKS=config.skips_masks,
        LARGEST_VALUE=LARGEST.get(cache.values.dtype, 0.0),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if config.num_splits > 1:
        _combine[(num_tiles * config.queries_per_tile, heads)](
            scratch,
            output,
            sequences,
            tiles,
            config.num_splits,
            WINDOW=window or 0,
            GROUP=group,
            DIM=dim,
            QUERIES=config.queries_per_tile,
            BLOCK_N=config.block_n,
            BLOCK_DIM=next_power_of_2(dim),
            num_warps=4,
        )


def _dim_blocks(dim: int, pads_dim: bool) -> tuple[int, int]:
    """The one or two powers of two that ``dim`` columns are read in."""
    padded = next_power_of_2(dim)
    if pads_dim or padded == dim or dim < 2 * MIN_TILE:
        return max(MIN_TILE, padded), 0
    return padded // 2, max(MIN_TILE, next_power_of_2(dim - padded // 2))


def _check(
    query: Tensor,
    cache: KvCache,
    output: Tensor,
    integers: tuple[Tensor, ...],
    config: AttentionConfig,
    scratch: Tensor,
) -> None:
    _, heads, dim = query.shape
    group, remainder = divmod(heads, cache.num_kv_heads)
    if remainder or config.queries_per_tile * group > config.block_m or not 1 <= config.num_splits <= MAX_SPLITS:
        raise ValueError(f"{heads} heads over a cache of shape {list(cache.values.shape)} do not fit {config}")
    fits = cache.values.dtype == query.dtype if cache.scales is None else cache.values.dtype in LARGEST
    if not fits or output.dtype != query.dtype or query.stride()[1:] != (dim, 1):
        raise ValueError(
            f"queries {query.dtype} with strides {query.stride()}, cache {cache.values.dtype}, output {output.dtype}"
        )
    parts = [output, cache.values] if cache.scales is None else [output, cache.values, cache.scales]
    if output.shape != query.shape or not all(part.is_contiguous() for part in parts):
        raise ValueError(f"output or cache is not contiguous, or not of shape {list(query.shape)}")
    if any(tensor.dtype != torch.int32 or not tensor.is_contiguous() for tensor in integers):
        raise ValueError("sequences, tiles and block tables are contiguous int32 tensors")
    needed = scratch_size(integers[1].shape[0], heads, dim, config)
    if scratch.dtype != torch.float32 or scratch.numel() < needed:
        raise ValueError(f"scratch is {scratch.dtype} of {scratch.numel()}, expected float32 of {needed}")


@triton.jit(do_not_specialize_on_alignment=["sequences", "tiles", "block_tables"])
def _attend(  # type: ignore[no-untyped-def]
    query,
    cache,
    scales,
    output,
    sequences,
    tiles,
    block_tables,
    scratch,
    scale,
    query_stride,
    cache_stride,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    REST_DIM: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    SKIPS_MASKS: tl.constexpr,
    LARGEST_VALUE: tl.constexpr,
):
    """Program (tile, head of the keys, split): the attention of a tile's queries to its share of the keys.

    LARGEST_VALUE is that of a cache in 8 bits, or 0.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the last tiles of a chunk have the most keys and go first
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    batch_row, num_queries, position, table, begin, stop = _tile_range(sequences, tiles, tile, WINDOW, QUERIES)
    split_begin = begin
    split_stop = stop
    if IS_SPLIT:
        length = _split_length(begin, stop, tl.num_programs(2), BLOCK_N)
        split_begin = begin + tl.program_id(2) * length
        split_stop = tl.minimum(stop, split_begin + length)
    if split_begin >= split_stop:
        return

    row = tl.arange(0, BLOCK_M)  # query row // GROUP of the tile, head row % GROUP of the group
    is_row = row // GROUP < num_queries
    positions = position + row // GROUP
    token = (batch_row + row // GROUP).to(tl.int64)
    head = kv_head * GROUP + row % GROUP
    query_rows = query + token * query_stride + head * DIM
    q = _load_rows(query_rows, is_row, True, 0, BLOCK_DIM, DIM)
    q_rest = q
    if REST_DIM:
        q_rest = _load_rows(query_rows, is_row, True, BLOCK_DIM, REST_DIM, DIM)
    keys = cache + kv_head.to(tl.int64) * cache_stride
    values = keys + num_kv_heads.to(tl.int64) * cache_stride
    key_scales = scales
    value_scales = scales
    if LARGEST_VALUE > 0:
        key_scales = scales + kv_head.to(tl.int64) * (cache_stride // DIM)
        value_scales = key_scales + num_kv_heads.to(tl.int64) * (cache_stride // DIM)
    inputs = (q, q_rest, positions, keys, values, key_scales, value_scales, block_tables + table, scale * _LOG2_E)

    acc = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
    acc_rest = acc
    if REST_DIM:
        acc_rest = tl.zeros([BLOCK_M, REST_DIM], tl.float32)
    state = (acc, acc_rest, tl.full([BLOCK_M], _LOWEST, tl.float32), tl.zeros([BLOCK_M], tl.float32))
    if SKIPS_MASKS:
        full_begin, full_stop = _full_range(position, begin, stop, split_begin, split_stop, WINDOW, BLOCK_N)
        if WINDOW:
            state = _attend_keys(
                state, inputs, split_begin, full_begin, True, WINDOW, DIM, BLOCK_N, BLOCK_DIM, REST_DIM, LARGEST_VALUE
            )
        state = _attend_keys(
            state, inputs, full_begin, full_stop, False, WINDOW, DIM, BLOCK_N, BLOCK_DIM, REST_DIM, LARGEST_VALUE
        )
        state = _attend_keys(
            state, inputs, full_stop, split_stop, True, WINDOW, DIM, BLOCK_N, BLOCK_DIM, REST_DIM, LARGEST_VALUE
        )
    else:
        state = _attend_keys(
            state, inputs, split_begin, split_stop, True, WINDOW, DIM, BLOCK_N, BLOCK_DIM, REST_DIM, LARGEST_VALUE
        )

    acc, acc_rest, row_max, row_sum = state
    is_empty = row_sum == 0.0  # rows beyond the queries, or without keys in this split
    factor = 1.0 / tl.where(is_empty, 1.0, row_sum)
    rows = output + (token * (num_kv_heads * GROUP) + head) * DIM
    if IS_SPLIT:
        partial = _partial(tile, kv_head, tl.program_id(2), num_kv_heads, tl.num_programs(2), QUERIES * GROUP) + row
        total = _partial(tl.num_programs(0), 0, 0, num_kv_heads, tl.num_programs(2), QUERIES * GROUP)
        log_sum = tl.where(is_empty, float("-inf"), row_max - tl.log2(factor))
        tl.store(scratch + total * DIM + partial, log_sum, mask=is_row)
        rows = scratch + partial * DIM
    if LARGEST_VALUE > 0:
        factor = factor * (1.0 / LARGEST_VALUE)
    _store_rows(rows, acc * factor[:, None], is_row, 0, BLOCK_DIM, DIM)
    if REST_DIM:
        _store_rows(rows, acc_rest * factor[:, None], is_row, BLOCK_DIM, REST_DIM, DIM)


@triton.jit
def _attend_keys(  # type: ignore[no-untyped-def]
    state,
    inputs,
    begin,
    stop,
    IS_MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    REST_DIM: tl.constexpr,
    LARGEST_VALUE: tl.constexpr,
):
    """Add the keys [begin, stop) to the running softmax: algorithm 1 of FlashAttention-2, with powers of two.

    Without IS_MASKED, all rows see all these keys, and their number is a multiple of BLOCK_N. The sums over a cache in
    8 bits are LARGEST_VALUE times as large as they should be: weights times the largest numbers stay in the range of
    float16, but weights times scales would not.
    """
    acc, acc_rest, row_max, row_sum = state
    q, q_rest, positions, keys, values, key_scales, value_scales, table, scale = inputs
    for start in range(begin, stop, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        is_key = key < stop
        # Threads of one page read the same entry, so that it is one access of the memory.
        if IS_MASKED:  # noqa: SIM108 - a constant of the compiler
            page = tl.load(table + key // _PAGE, mask=is_key, other=0)
        else:
            page = tl.load(table + key // _PAGE)
        slot = page.to(tl.int64) * _PAGE + key % _PAGE
        offset = slot * DIM

        k = _load_rows(keys + offset, is_key, IS_MASKED, 0, BLOCK_DIM, DIM)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision="ieee")
        if REST_DIM:
            k_rest = _load_rows(keys + offset, is_key, IS_MASKED, BLOCK_DIM, REST_DIM, DIM)
            scores = tl.dot(q_rest, tl.trans(k_rest.to(q.dtype)), scores, input_precision="ieee")
        if LARGEST_VALUE > 0:
            scores *= tl.load(key_scales + slot, mask=is_key, other=0.0)[None, :]
        if IS_MASKED:
            is_seen = is_key[None, :] & (key[None, :] <= positions[:, None])
            if WINDOW:
                is_seen = is_seen & (key[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_max = new_max
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        v = _load_rows(values + offset, is_key, IS_MASKED, 0, BLOCK_DIM, DIM)
        if LARGEST_VALUE > 0:
            of_keys = tl.load(value_scales + slot, mask=is_key, other=0.0)
            weights *= (of_keys * LARGEST_VALUE)[None, :]
        weights = weights.to(q.dtype)
        acc = tl.dot(weights, v.to(q.dtype), acc * rescale[:, None], input_precision="ieee")
        if REST_DIM:
            v_rest = _load_rows(values + offset, is_key, IS_MASKED, BLOCK_DIM, REST_DIM, DIM)
            acc_rest = tl.dot(weights, v_rest.to(q.dtype), acc_rest * rescale[:, None], input_precision="ieee")
    return acc, acc_rest, row_max, row_sum


@triton.jit
def _tile_range(sequences, tiles, tile, WINDOW: tl.constexpr, QUERIES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of a tile: first row of the batch, queries, position of the first, first table entry, keys [begin, stop).

    ``begin`` is the start of a page. The range is empty if there are no queries.
    """
    sequence = tl.load(tiles + tile * 2)
    first = tl.load(tiles + tile * 2 + 1)
    batch_row = tl.load(sequences + sequence * 4)
    count = tl.load(sequences + sequence * 4 + 1)
    end = tl.load(sequences + sequence * 4 + 2)
    table = tl.load(sequences + sequence * 4 + 3)
    num_queries = tl.minimum(count - first, QUERIES)
    position = end - count + first
    begin = end * 0
    if WINDOW:
        begin = tl.maximum(position - WINDOW + 1, 0) // _PAGE * _PAGE
    stop = tl.where(num_queries > 0, position + num_queries, begin)
    return batch_row + first, num_queries, position, table, begin, stop


@triton.jit
def _split_length(begin, stop, num_splits, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many keys each split has. The last ones may have fewer, or none."""
    return tl.cdiv(tl.cdiv(stop - begin, num_splits), BLOCK_N) * BLOCK_N


@triton.jit
def _full_range(  # type: ignore[no-untyped-def]
    position, begin, stop, split_begin, split_stop, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The keys of a split that all queries of its tile see, in whole steps of BLOCK_N from ``begin``."""
    full_begin = begin
    if WINDOW:
        full_begin = begin + tl.cdiv(tl.maximum(stop - WINDOW - begin, 0), BLOCK_N) * BLOCK_N
    full_stop = begin + (position + 1 - begin) // BLOCK_N * BLOCK_N
    full_begin = tl.minimum(tl.maximum(full_begin, split_begin), split_stop)
    return full_begin, tl.minimum(tl.maximum(full_stop, full_begin), split_stop)


@triton.jit(do_not_specialize=["num_splits"], do_not_specialize_on_alignment=["sequences", "tiles"])
def _combine(  # type: ignore[no-untyped-def]
    scratch,
    output,
    sequences,
    tiles,
    num_splits,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """Program (query of a tile, head): the mean of the splits' results, weighted by their sums of exponentials."""
    tile = tl.program_id(0) // QUERIES
    query = tl.program_id(0) % QUERIES
    head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1) // GROUP
    batch_row, num_queries, _position, _table, begin, stop = _tile_range(sequences, tiles, tile, WINDOW, QUERIES)
    if query >= num_queries:
        return

    split = tl.arange(0, _MAX_SPLITS)
    is_split = split < tl.cdiv(stop - begin, _split_length(begin, stop, num_splits, BLOCK_N))
    partial = _partial(tile, head // GROUP, split, num_kv_heads, num_splits, QUERIES * GROUP)
    partial += query * GROUP + head % GROUP
    total = _partial(tl.num_programs(0) // QUERIES, 0, 0, num_kv_heads, num_splits, QUERIES * GROUP)
    log_sums = tl.load(scratch + total * DIM + partial, mask=is_split, other=float("-inf"))
    weights = tl.exp2(log_sums - tl.max(log_sums, 0))
    results = _load_rows(scratch + partial * DIM, is_split, True, 0, BLOCK_DIM, DIM)
    result = tl.sum(results * weights[:, None], 0) / tl.sum(weights, 0)
    column = tl.arange(0, BLOCK_DIM)
    row = (batch_row + query).to(tl.int64) * tl.num_programs(1) + head
    tl.store(output + row * DIM + column, result.to(output.dtype.element_ty), mask=column < DIM)


@triton.jit
def _partial(tile, kv_head, split, num_kv_heads, num_splits, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The number of a split's first row in the scratch. First all rows lie there, then their logarithms of sums."""
    return ((tile * num_kv_heads + kv_head) * num_splits + split).to(tl.int64) * ROWS


@triton.jit
def _load_rows(  # type: ignore[no-untyped-def]
    rows, is_row, IS_MASKED: tl.constexpr, FIRST: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr
):
    """Columns [FIRST, FIRST + COLUMNS) of ``rows`` (pointers); 0 beyond DIM, and with IS_MASKED where not is_row."""
    column = FIRST + tl.arange(0, COLUMNS)
    pointers = rows[:, None] + column[None, :]
    if IS_MASKED:
        loaded = tl.load(pointers, mask=is_row[:, None] & (column < DIM)[None, :], other=0.0)
    elif FIRST + COLUMNS > DIM:
        loaded = tl.load(pointers, mask=(column < DIM)[None, :], other=0.0)
    else:
        loaded = tl.load(pointers)
    return loaded


@triton.jit
def _store_rows(  # type: ignore[no-untyped-def]
    rows, x, is_row, FIRST: tl.constexpr, COLUMNS: tl.constexpr, DIM: tl.constexpr
):
    """Store ``x`` where ``_load_rows`` reads, in the dtype of ``rows`` (pointers)."""
    column = FIRST + tl.arange(0, COLUMNS)
    is_inside = is_row[:, None] & (column < DIM)[None, :]
    tl.store(rows[:, None] + column[None, :], x.to(rows.dtype.element_ty), mask=is_inside)
