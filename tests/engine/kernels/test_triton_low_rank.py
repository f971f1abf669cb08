"""The products of adapters in Triton's interpreter, against float64. ``make fuzz-kernels`` draws more shapes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import PAGE_RANK, AdaptedTiles, PagedLowRank
from phi3_serve.engine.kernels.low_rank_products import add_paged
from phi3_serve.engine.kernels.triton_low_rank import MAX_TILE_PROGRAMS, add_low_rank, num_splits

pytestmark = pytest.mark.slow  # in Triton's interpreter

NUM_PAGES = 20
UNUSED = 7  # a page that does not change the layer; its matrices are no numbers
GARBAGE = 1 << 30  # a row, a page or a count far beyond everything


@dataclass(frozen=True)
class Mix:
    """Rows of the batch with the same adapters: their pages and strengths."""

    rows: Sequence[int]
    pages: Sequence[tuple[int, float]]


def tiles_of(mixes: Sequence[Mix], rows_per_tile: int, *, padding: int = 0) -> AdaptedTiles:
    """The tiles of ``mixes``, and ``padding`` rows and tiles of garbage."""
    rows: list[int] = []
    tiles: list[tuple[int, ...]] = []
    pages: list[tuple[int, int]] = [(GARBAGE, GARBAGE)] * 3  # what the buffer has before them
    for mix in mixes:
        first_page = len(pages)
        pages += [(page, struct.unpack("i", struct.pack("f", strength))[0]) for page, strength in mix.pages]
        for start in range(0, len(mix.rows), rows_per_tile):
            of_tile = mix.rows[start : start + rows_per_tile]
            tiles.append((len(rows), len(of_tile), first_page, len(mix.pages)))
            rows += of_tile
    num_tiles = torch.tensor([len(tiles)], dtype=torch.int32)
    rows += [GARBAGE] * padding
    tiles += [(GARBAGE,) * 4] * padding
    parts = [torch.tensor(part, dtype=torch.int32) for part in (rows, tiles, pages)]
    most = max((len(mix.pages) for mix in mixes), default=1)
    return AdaptedTiles(parts[0], num_tiles, parts[1].view(-1, 4), parts[2], rows_per_tile, most)


def drawn(inputs: int, outputs: int, dtype: torch.dtype) -> PagedLowRank:
    """Pages as they lie on the device: the matrices of one layer amid those of others."""
    a, b = (torch.full((NUM_PAGES, PAGE_RANK * width + 64), torch.nan, dtype=dtype) for width in (inputs, outputs))
    views = [
        part[:, 32 : 32 + PAGE_RANK * width].unflatten(1, (PAGE_RANK, width))
        for part, width in ((a, inputs), (b, outputs))
    ]
    for view in views:
        view[:UNUSED] = torch.randn(view[:UNUSED].shape)
        view[UNUSED + 1 :] = torch.randn(view[UNUSED + 1 :].shape)
    scalings = torch.full((NUM_PAGES, 5), torch.nan)[:, 2]
    scalings.copy_(torch.randn(NUM_PAGES))
    scalings[UNUSED] = 0
    return PagedLowRank(views[0], views[1], scalings)


def expected(x: Tensor, output: Tensor, change: PagedLowRank, mixes: Sequence[Mix]) -> tuple[Tensor, Tensor]:
    """The sums in float64, and those of the magnitudes of all products."""
    sums, magnitudes = output.double(), output.double().abs()
    for mix in mixes:
        rows = list(mix.rows)
        for page, strength in mix.pages:
            if page != UNUSED:
                a, b, factor = (
                    change.a[page].double(),
                    change.b[page].double(),
                    change.scalings[page].double() * strength,
                )
                sums[rows] += x[rows].double() @ a.T * factor @ b
                magnitudes[rows] += x[rows].double().abs() @ a.abs().T * factor.abs() @ b.abs()
    return sums, magnitudes


def check(mixes: Sequence[Mix], num_rows: int, inputs: int, outputs: int, dtype: torch.dtype, rows_per_tile: int = 16, padding: int = 0) -> None:  # fmt: skip
    """The kernels and the reference against float64; rows without an adapter keep their bits."""
    change, tiles = drawn(inputs, outputs, dtype), tiles_of(mixes, rows_per_tile, padding=padding)
    x, output = torch.randn(num_rows, inputs).to(dtype), (torch.randn(num_rows, outputs) * 8).to(dtype)
    sums, magnitudes = expected(x, output, change, mixes)
    of_dtype = torch.finfo(dtype)
    bound = 4e-6 * magnitudes + of_dtype.eps * (sums.abs() + of_dtype.tiny)  # float32 sums, then one rounding
    plain = sorted(set(range(num_rows)).difference(*(mix.rows for mix in mixes)))
    for add in (add_low_rank, add_paged):
        found = output.clone()
        add(x, found, change, tiles)
        assert ((found.double() - sums).abs() <= bound).all()
        assert torch.equal(found[plain], output[plain])


def pages(rank: int, first: int = 0, strength: float = 1.0) -> list[tuple[int, float]]:
    return [((first + number) % UNUSED, strength) for number in range(-(-rank // PAGE_RANK))]


@pytest.mark.parametrize(
    ("rank", "dtype"),
    [(1, torch.float32), (16, torch.bfloat16), (17, torch.float16), (48, torch.float32)],
    ids=str,
)
def test_ranks(rank: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rank)
    check([Mix([0, 3, 4], pages(rank)), Mix([2], pages(rank, 5, -0.7))], 6, 150, 150, dtype)


def test_the_largest_rank_in_a_mix_of_several_adapters() -> None:
    torch.manual_seed(1)
    mix = [*pages(96, 0, 0.5), *pages(96, 2, -1.5), *pages(64, 4, 2.0)]
    assert len(mix) * PAGE_RANK == 256
    check([Mix(range(1, 4), mix)], 5, 40, 30, torch.float32)


def test_a_page_that_does_not_change_the_layer_is_not_read() -> None:
    torch.manual_seed(2)
    for dtype in (torch.float32, torch.bfloat16):
        check([Mix([0], [(UNUSED, 1.0)]), Mix([1, 2], [(1, 0.5), (UNUSED, 1.0), (3, 1.0)])], 4, 33, 20, dtype)


def test_a_strength_of_nothing_changes_nothing() -> None:
    torch.manual_seed(3)
    check([Mix([0, 1], [(2, 0.0)])], 2, 33, 20, torch.float32)


@pytest.mark.parametrize("rows_per_tile", [16, 64])
def test_many_rows_take_several_tiles(rows_per_tile: int) -> None:
    """A prompt, whose last tile is not full, beside decoded rows in no order."""
    torch.manual_seed(4)
    mixes = [Mix(range(20, 90), pages(16)), Mix([19, 0, 7], pages(32, 2)), Mix([18], pages(16, 6))]
    check(mixes, 95, 40, 50, torch.bfloat16, rows_per_tile)


def test_more_tiles_than_programs() -> None:
    torch.manual_seed(5)
    mixes = [Mix([row], pages(16, row, 0.5 + row)) for row in reversed(range(MAX_TILE_PROGRAMS + 3))]
    check(mixes, MAX_TILE_PROGRAMS + 3, 20, 24, torch.float32)


@pytest.mark.parametrize("mixes", [[], [Mix([1], pages(16))]], ids=["none", "one"])
def test_padding_is_not_read(mixes: list[Mix]) -> None:
    torch.manual_seed(6)
    check(mixes, 3, 20, 24, torch.float32, padding=5)


def test_without_any_tile_nothing_runs() -> None:
    torch.manual_seed(7)
    check([], 2, 20, 24, torch.float32)
    check([], 0, 20, 24, torch.float32)


def test_inputs_are_split() -> None:
    torch.manual_seed(8)
    assert (num_splits(2, 2100), num_splits(16, 1 << 20), num_splits(1, 1000)) == (2, 8, 1)
    check([Mix([0, 2], pages(16)), Mix([1], pages(16, 3))], 3, 2100, 24, torch.bfloat16)


def test_what_is_no_number_stays_in_its_row() -> None:
    torch.manual_seed(9)
    change, tiles = drawn(33, 20, torch.float32), tiles_of([Mix([0, 1, 2], pages(16))], 16)
    x, output = torch.randn(4, 33), torch.zeros(4, 20)
    right = output.clone()
    add_low_rank(x, right, change, tiles)
    x[1, 5], x[3] = torch.nan, torch.nan
    add_low_rank(x, output, change, tiles)
    assert output[1].isnan().all()
    assert torch.equal(output[[0, 2, 3]], right[[0, 2, 3]])


def test_what_the_kernels_cannot_read_is_refused() -> None:
    change, tiles = drawn(32, 20, torch.float32), tiles_of([Mix([0], pages(16))], 16)
    x, output = torch.randn(2, 32), torch.zeros(2, 20)
    with pytest.raises(TypeError, match="one dtype"):
        add_low_rank(x.half(), output, change, tiles)
    with pytest.raises(TypeError, match="contiguous rows"):
        add_low_rank(x, torch.zeros(20, 2).T, change, tiles)
    with pytest.raises(TypeError, match=r"contiguous pages \[16, 20\]"):
        add_low_rank(x, output, replace(change, b=change.a), tiles)
    with pytest.raises(TypeError, match="int32"):
        add_low_rank(x, output, change, replace(tiles, rows=tiles.rows.long()))
