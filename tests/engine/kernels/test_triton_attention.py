"""The attention kernel in Triton's interpreter against a computation in float64.

The interpreter takes milliseconds for each operation of each program. So each border occurs once with each other setting
that matters to it; ``make fuzz-kernels`` draws from all products.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels.kv_cache import KvCache, rounded
from phi3_serve.engine.kernels.triton_attention import (
    MAX_SPLITS,
    AttentionConfig,
    attend,
    balanced_splits,
    decode_config,
    prefill_config,
    prefill_queries_per_tile,
    scratch_size,
)
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

pytestmark = pytest.mark.slow  # in Triton's interpreter

TOLERANCE = {torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NUM_BLOCKS = 40
UNREAD = 0  # a block without any number
UNWRITTEN = 77.0
DECODE = AttentionConfig(queries_per_tile=1, block_m=16, block_n=32, num_splits=1, num_warps=4, num_stages=2)
DRAFTS = AttentionConfig(queries_per_tile=3, block_m=16, block_n=32, num_splits=1, num_warps=4, num_stages=2)
PREFILL = AttentionConfig(
    queries_per_tile=8,
    block_m=32,
    block_n=16,
    num_splits=1,
    num_warps=4,
    num_stages=2,
    pads_dim=False,
    skips_masks=True,
)


@dataclass(frozen=True)
class Request:
    """The last ``num_queries`` positions before ``end``. 0 of both is padding."""

    num_queries: int
    end: int
    shares: bool = False  # its first blocks with the other requests


@dataclass(frozen=True)
class Shape:
    heads: int = 2
    kv_heads: int = 2
    dim: int = 32
    dtype: torch.dtype = torch.float32
    window: int | None = None
    stored: torch.dtype | None = None  # of the cache, in 8 bits; None: as the queries


@dataclass(frozen=True)
class Step:
    """Random queries and keys of some requests, with the blocks in random order. What nobody may read is NaN."""

    query: Tensor
    cache: KvCache
    sequences: list[tuple[int, int, int, int]]
    block_tables: list[int]

    @classmethod
    def of(cls, requests: Sequence[Request], shape: Shape, seed: int = 0) -> "Step":
        draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        free = draw.sample(range(1, NUM_BLOCKS), NUM_BLOCKS - 1)
        shared = [free.pop() for _ in range(2)]
        cache = torch.full((2 * shape.kv_heads, NUM_BLOCKS * BLOCK_SIZE, shape.dim), torch.nan).to(shape.dtype)
        tables: list[int] = [UNREAD]  # the first sequence does not begin at 0
        sequences, row = [], 2  # the first two tokens are nobody's
        for request in requests:
            blocks = shared[:] if request.shares else []
            while len(blocks) * BLOCK_SIZE < request.end:
                blocks.append(free.pop())
            blocks = blocks[: -(-request.end // BLOCK_SIZE)]
            sequences.append((row if request.end else 0, request.num_queries, request.end, len(tables)))
            first = first_key(request.end - request.num_queries, shape.window) // BLOCK_SIZE
            for index, block in enumerate(blocks[first:], first):
                slots = slice(
                    block * BLOCK_SIZE, block * BLOCK_SIZE + min(BLOCK_SIZE, request.end - index * BLOCK_SIZE)
                )
                values = torch.randn(cache[:, slots].shape, generator=generator)
                # Keys of a shared block are written once.
                cache[:, slots] = torch.where(cache[:, slots].isnan(), values.to(shape.dtype), cache[:, slots])
            tables += [UNREAD] * first + blocks[first:]
            row += request.num_queries
        qkv = torch.randn(row + 1, shape.heads + 2 * shape.kv_heads, shape.dim, generator=generator).to(shape.dtype)
        stored = (cache,) if shape.stored is None else rounded(cache, shape.stored)
        return cls(qkv[:, : shape.heads], KvCache(*stored), sequences, tables)

    def tiles(self, size: int) -> list[tuple[int, int]]:
        return [
            (number, first)
            for number, (_, count, _, _) in enumerate(self.sequences)
            for first in range(0, max(1, count), size)
        ]

    def attended(self, shape: Shape, config: AttentionConfig, scale: float) -> Tensor:
        output = torch.full(self.query.shape, UNWRITTEN, dtype=shape.dtype)
        tiles = self.tiles(config.queries_per_tile)
        scratch = torch.full((scratch_size(len(tiles), shape.heads, shape.dim, config),), torch.nan)
        integers = [torch.tensor(x, dtype=torch.int32) for x in (self.sequences, tiles, self.block_tables)]
        attend(
            self.query, self.cache, output, *integers, scale=scale, window=shape.window, config=config, scratch=scratch
        )
        return output

    def expected(self, shape: Shape, scale: float) -> Tensor:
        """Query by query in float64."""
        output = torch.full(self.query.shape, UNWRITTEN, dtype=torch.float64)
        for row, count, end, table in self.sequences:
            for query in range(count):
                position = end - count + query
                seen = range(first_key(position, shape.window), position + 1)
                slots = [self.block_tables[table + p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in seen]
                group = shape.heads // shape.kv_heads
                read = self.cache.read(torch.tensor(slots))
                keys, values = (part.double().repeat_interleave(group, 0) for part in read)
                scores = torch.einsum("hd,hkd->hk", self.query[row + query].double(), keys) * scale
                output[row + query] = torch.einsum("hk,hkd->hd", scores.softmax(-1), values)
        return output


def first_key(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position - window + 1)


def check(requests: Sequence[Request], shape: Shape, config: AttentionConfig, *, sharpness: float = 1.0) -> None:
    step = Step.of(requests, shape)
    scale = sharpness * shape.dim**-0.5
    found = step.attended(shape, config, scale)
    tolerance = TOLERANCE[shape.dtype]
    torch.testing.assert_close(found.double(), step.expected(shape, scale), rtol=tolerance, atol=tolerance)


def decoded(*ends: int) -> list[Request]:
    return [Request(1, end) for end in ends]


MIXED = [Request(1, 37), Request(0, 0), Request(3, 18), Request(10, 45, shares=True), Request(1, 40, shares=True)]


@pytest.mark.parametrize(("window", "num_splits"), [(None, 1), (None, 5), (1, 2), (16, 5), (17, 1), (30, 2)])
def test_decoding(window: int | None, num_splits: int) -> None:
    """Lengths at the borders of pages, of reads and of windows; sequences far apart in length."""
    ends = decoded(1, 15, 16, 17, 29, 30, 31, 32, 33, 48, 49)
    check(ends, Shape(heads=1, kv_heads=1, dim=16, window=window), replace(DECODE, num_splits=num_splits))


@pytest.mark.parametrize(
    ("window", "num_splits", "config"),
    [
        (None, 1, PREFILL),
        (None, 2, DRAFTS),
        (5, 2, PREFILL),
        (16, 1, DRAFTS),
        (16, 5, PREFILL),
        (25, 1, PREFILL),
        (25, 2, DECODE),
        (25, 5, DRAFTS),
    ],
)
def test_mixed_steps(window: int | None, num_splits: int, config: AttentionConfig) -> None:
    """Decoded tokens, a draft, a chunk behind a prefix, padding, and blocks of two requests."""
    check(MIXED, Shape(heads=4, dim=16, window=window), replace(config, num_splits=num_splits))


@pytest.mark.parametrize(
    ("dim", "pads_dim"), [(16, True), (32, False), (40, True), (40, False), (96, True), (96, False), (128, False)]
)
def test_head_dims(dim: int, pads_dim: bool) -> None:
    for config in (replace(DRAFTS, num_splits=2), PREFILL):
        check([Request(1, 20), Request(9, 35)], Shape(1, 1, dim), replace(config, pads_dim=pads_dim))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dtype"),
    [
        (2, 2, torch.float16),
        (4, 2, torch.bfloat16),
        (3, 1, torch.float32),
        (4, 1, torch.bfloat16),
        (8, 1, torch.float16),
    ],
)
def test_grouped_queries(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    shape = Shape(heads, kv_heads, dtype=dtype, window=30)
    group = heads // kv_heads
    check([*decoded(7, 50), Request(0, 0)], shape, replace(DECODE, num_splits=2))
    check(
        [Request(5, 41), Request(1, 3)],
        shape,
        AttentionConfig.of(16 // group, group, block_n=16, num_splits=1, num_warps=4, num_stages=2),
    )


@pytest.mark.parametrize(("dtype", "num_splits", "window"), [(torch.bfloat16, 1, None), (torch.float32, 2, 40)])
def test_default_configs(dtype: torch.dtype, num_splits: int, window: int | None) -> None:
    """Those of both models, on shapes small enough for the interpreter."""
    for kv_heads, group, dim in ((2, 1, 96), (1, 4, 128)):
        shape = Shape(kv_heads * group, kv_heads, dim, dtype, window)
        for requests, config in (
            (decoded(70), decode_config(1, kv_heads, group, dtype, 132)),
            ([Request(4, 70)], decode_config(1, kv_heads, group, dtype, 132, queries_per_tile=4)),
            ([Request(9, 70)], prefill_config(4, kv_heads, group, dtype, 132)),
            ([Request(9, 70)], prefill_config(4, kv_heads, group, dtype, 40, is_before_ampere=True)),
        ):
            check(requests, shape, replace(config, num_splits=num_splits))


@pytest.mark.parametrize(
    ("stored", "dtype", "window", "num_splits", "config", "dim"),
    [
        (torch.int8, torch.float32, None, 1, PREFILL, 40),
        (torch.float8_e4m3fn, torch.float32, 16, 5, PREFILL, 16),
        (torch.int8, torch.bfloat16, 25, 2, DRAFTS, 96),
        (torch.float8_e4m3fn, torch.bfloat16, None, 1, DRAFTS, 40),
        (torch.int8, torch.float16, None, 5, DRAFTS, 16),
    ],
    ids=str,
)
def test_a_cache_in_8_bits(
    stored: torch.dtype, dtype: torch.dtype, window: int | None, num_splits: int, config: AttentionConfig, dim: int
) -> None:
    """Attention over the numbers that the cache means; what nobody may read has no number as its scale."""
    check(MIXED, Shape(4, 2, dim, dtype, window, stored), replace(config, num_splits=num_splits))


def test_small_values_of_many_keys_keep_their_weight_in_float16() -> None:
    """Weights times scales would be below the smallest number of float16."""
    shape = Shape(1, 1, 16, torch.float16, stored=torch.int8)
    step = Step.of([Request(1, 500)], shape)
    assert step.cache.scales is not None
    step.cache.scales[1] *= 1e-3
    step.cache.scales[0, step.block_tables[1] * BLOCK_SIZE] *= 3.0  # one key outweighs the others
    found, expected = step.attended(shape, DECODE, 1.0)[2], step.expected(shape, 1.0)[2]
    assert (found.double() - expected).norm() < 2e-3 * expected.norm()


def test_sharp_scores_stay_numbers() -> None:
    """One key outweighs all others, in each split another one."""
    for num_splits in (1, 5):
        check(MIXED, Shape(dim=16, window=25), replace(DRAFTS, num_splits=num_splits), sharpness=1e4)


def test_a_query_that_is_no_number_stays_alone() -> None:
    shape = Shape(1, 1, 16, window=25)
    step = Step.of(MIXED, shape)
    row = step.sequences[3][0]
    expected = step.attended(shape, DRAFTS, 1.0)
    step.query[row] = torch.nan
    found = step.attended(shape, DRAFTS, 1.0)
    assert found[row].isnan().all()
    found[row] = expected[row]
    assert torch.equal(found, expected)


def test_no_tiles() -> None:
    step = Step.of([], Shape())
    assert (step.attended(Shape(), DECODE, 1.0) == UNWRITTEN).all()


def test_what_does_not_fit_is_refused() -> None:
    shape = Shape(heads=4)
    step = Step.of(decoded(5), shape)
    with pytest.raises(ValueError, match="do not fit"):
        step.attended(shape, replace(DECODE, queries_per_tile=9), 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        step.attended(shape, replace(DECODE, num_splits=MAX_SPLITS + 1), 1.0)
    with pytest.raises(ValueError, match=r"cache torch\.float16"):
        replace(step, cache=KvCache(step.cache.values.half())).attended(shape, DECODE, 1.0)
    with pytest.raises(ValueError, match="not contiguous"):
        replace(step, cache=KvCache(step.cache.values[:, ::2])).attended(shape, DECODE, 1.0)
    integers = [torch.tensor(x, dtype=torch.int32) for x in (step.sequences, [(0, 0)], step.block_tables)]
    output, scratch = torch.zeros(step.query.shape), torch.zeros(scratch_size(1, 4, 32, replace(DECODE, num_splits=2)))
    with pytest.raises(ValueError, match="int32"):
        attend(step.query, step.cache, output, integers[0].long(), *integers[1:], scale=1.0, window=None, config=DECODE, scratch=scratch)  # fmt: skip
    with pytest.raises(ValueError, match="scratch"):
        attend(step.query, step.cache, output, *integers, scale=1.0, window=None, config=replace(DECODE, num_splits=2), scratch=scratch[1:])  # fmt: skip


@pytest.mark.parametrize(("kv_heads", "group"), [(32, 1), (10, 4)])
def test_default_configs_fill_the_device(kv_heads: int, group: int) -> None:
    for rows in (1, 2, 8, 32, 256):
        config = decode_config(rows, kv_heads, group, torch.bfloat16, 132)
        assert rows * kv_heads * config.num_splits > 132
    assert config.num_splits == 1
    config = prefill_config(1, kv_heads, group, torch.bfloat16, 132)
    assert config.queries_per_tile == prefill_queries_per_tile(group, torch.bfloat16)
    assert 100 < kv_heads * config.num_splits <= 132


def test_splits_are_as_few_as_fill_the_last_wave() -> None:
    assert [balanced_splits(programs, 100) for programs in (0, 1, 10, 45, 60, 90, 95, 130, 1000)] == [1, 29, 9, 2, 3, 1, 1, 3, 1]  # fmt: skip
