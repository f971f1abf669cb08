"""The products of adapters (LoRA) in Triton, for rows with different adapters in one launch.

As SGMV of Punica (Chen et al. 2023, arXiv:2310.18547) does, one kernel multiplies rows by A, and a second one the
products by B. Unlike there, the rows of a tile are listed, so decoded rows with the same adapter share a tile
wherever they are in the batch. As in S-LoRA (Sheng et al. 2023, arXiv:2311.03285), adapters lie in pages. The launches
depend on shapes alone, so they can be captured in a CUDA graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from phi3_serve.engine.kernels.contract import PAGE_RANK, ROWS_PER_TILE, AdaptedTiles, PagedLowRank
from phi3_serve.engine.kernels.launch_sizes import cdiv

# None of these numbers was measured.
MAX_TILE_PROGRAMS = 16  # more tiles are shared by them, so that the padding tiles of a graph cost nothing
INPUTS_OF_SPLIT = 1024  # at least; with few tiles the inputs are split, so that more programs read A
MAX_SPLIT_PROGRAMS = 128
BLOCK_OUTPUTS = 128
NUM_WARPS, NUM_STAGES = 4, 2


def add_low_rank(x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
    """See ``contract.DeviceKernels``."""
    _check(x, output, change, tiles)
    num_tiles, num_rows = len(tiles.tiles), len(tiles.rows)
    if not num_tiles or not num_rows:
        return
    inputs, outputs = x.shape[1], output.shape[1]
    programs = min(num_tiles, MAX_TILE_PROGRAMS)
    block = block_inputs(tiles.rows_per_tile)
    splits = num_splits(programs, inputs)
    length = cdiv(cdiv(inputs, splits), block) * block
    products = torch.empty(splits, num_rows, tiles.pages_per_tile, PAGE_RANK, dtype=torch.float32, device=x.device)
    integers = (tiles.rows, tiles.num_tiles, tiles.tiles, tiles.pages)
    _multiply_a[(programs, splits)](
        x,
        products,
        change.a,
        change.scalings,
        *integers,
        inputs,
        length,
        change.a.stride(0),
        change.scalings.stride(0),
        num_rows,
        tiles.pages_per_tile,
        RANK=PAGE_RANK,
        BLOCK_M=tiles.rows_per_tile,
        BLOCK_K=block,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )
    _add_b[(programs, cdiv(outputs, BLOCK_OUTPUTS))](
        output,
        products,
        change.b,
        change.scalings,
        *integers,
        outputs,
        change.b.stride(0),
        change.scalings.stride(0),
        num_rows,
        tiles.pages_per_tile,
        splits,
        RANK=PAGE_RANK,
        BLOCK_M=tiles.rows_per_tile,
        BLOCK_N=BLOCK_OUTPUTS,
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
    )


def block_inputs(rows_per_tile: int) -> int:
    """The inputs of one iteration."""
    return 128 if rows_per_tile == ROWS_PER_TILE[0] else 64


def num_splits(programs: int, inputs: int) -> int:
    """Into how many parts the inputs are split for so many programs that take tiles."""
    return max(1, min(MAX_SPLIT_PROGRAMS // programs, inputs // INPUTS_OF_SPLIT))


def _check(x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
    a, b = change.a, change.b
    if not x.dtype == output.dtype == a.dtype == b.dtype:
        raise TypeError(f"expected one dtype, got {x.dtype}, {output.dtype}, {a.dtype} and {b.dtype}")
    if not (x.is_contiguous() and output.is_contiguous()) or len(x) != len(output):
        raise TypeError(f"expected contiguous rows, got {list(x.shape)} and {list(output.shape)}")
    for matrix, width in ((a, x.shape[1]), (b, output.shape[1])):
        if matrix.shape[1:] != (PAGE_RANK, width) or matrix.stride()[1:] != (width, 1):
            raise TypeError(f"expected contiguous pages [{PAGE_RANK}, {width}], got {list(matrix.shape)}")
    integers = (tiles.rows, tiles.num_tiles, tiles.tiles, tiles.pages)
    if any(tensor.dtype != torch.int32 or not tensor.is_contiguous() for tensor in integers):
        raise TypeError("expected contiguous int32 tensors for the tiles")


@triton.jit(do_not_specialize=["num_rows", "pages_per_tile"])
def _multiply_a(  # type: ignore[no-untyped-def]
    x,
    products,
    a,
    scalings,
    rows,
    num_tiles,
    tiles,
    pages,
    inputs,
    length,
    stride,
    scaling_stride,
    num_rows,
    pages_per_tile,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (tiles, split): the rows of some tiles times A, over ``length`` inputs, scaled."""
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, RANK)
    k = tl.arange(0, BLOCK_K)
    begin = tl.program_id(1) * length
    end = tl.minimum(begin + length, inputs)
    for tile in range(tl.program_id(0), tl.load(num_tiles), tl.num_programs(0)):
        first = tl.load(tiles + tile * 4)
        is_row = m < tl.load(tiles + tile * 4 + 1)
        first_page = tl.load(tiles + tile * 4 + 2)
        of_tile = x + tl.load(rows + first + m, mask=is_row, other=0).to(tl.int64)[:, None] * inputs
        targets = products + ((tl.program_id(1) * num_rows + first + m) * pages_per_tile)[:, None] * RANK + r[None, :]
        for number in range(tl.load(tiles + tile * 4 + 3)):
            page = tl.load(pages + (first_page + number) * 2).to(tl.int64)
            strength = tl.load(pages + (first_page + number) * 2 + 1).to(tl.float32, bitcast=True)
            factor = tl.load(scalings + page * scaling_stride) * strength
            if factor != 0:
                of_page = a + page * stride + r[:, None] * inputs
                total = tl.zeros((BLOCK_M, RANK), tl.float32)
                for start in range(begin, end, BLOCK_K):
                    is_input = (start + k < end)[None, :]
                    x_block = tl.load(of_tile + (start + k)[None, :], mask=is_row[:, None] & is_input, other=0.0)
                    a_block = tl.load(of_page + (start + k)[None, :], mask=is_input, other=0.0)
                    total = tl.dot(x_block, tl.trans(a_block), total, input_precision="ieee")
                tl.store(targets + number * RANK, total * factor, mask=is_row[:, None])


@triton.jit(do_not_specialize=["num_rows", "pages_per_tile", "splits"])
def _add_b(  # type: ignore[no-untyped-def]
    output,
    products,
    b,
    scalings,
    rows,
    num_tiles,
    tiles,
    pages,
    outputs,
    stride,
    scaling_stride,
    num_rows,
    pages_per_tile,
    splits,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program (tiles, outputs): the products of some tiles times B, added to BLOCK_N outputs."""
    m = tl.arange(0, BLOCK_M)
    r = tl.arange(0, RANK)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_output = (n < outputs)[None, :]
    for tile in range(tl.program_id(0), tl.load(num_tiles), tl.num_programs(0)):
        first = tl.load(tiles + tile * 4)
        is_row = m < tl.load(tiles + tile * 4 + 1)
        first_page = tl.load(tiles + tile * 4 + 2)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for number in range(tl.load(tiles + tile * 4 + 3)):
            page = tl.load(pages + (first_page + number) * 2).to(tl.int64)
            strength = tl.load(pages + (first_page + number) * 2 + 1).to(tl.float32, bitcast=True)
            if tl.load(scalings + page * scaling_stride) * strength != 0:
                product = tl.zeros((BLOCK_M, RANK), tl.float32)
                for split in range(splits):
                    of_row = ((split * num_rows + first + m) * pages_per_tile + number)[:, None] * RANK
                    product += tl.load(products + of_row + r[None, :], mask=is_row[:, None], other=0.0)
                of_page = b + page * stride + r[:, None] * outputs + n[None, :]
                b_block = tl.load(of_page, mask=is_output, other=0.0).to(tl.float32)
                total = tl.dot(product, b_block, total, input_precision="ieee")
        row = tl.load(rows + first + m, mask=is_row, other=0).to(tl.int64)
        of_tile = output + row[:, None] * outputs + n[None, :]
        added = total + tl.load(of_tile, mask=is_row[:, None] & is_output, other=0.0).to(tl.float32)
        tl.store(of_tile, added.to(output.dtype.element_ty), mask=is_row[:, None] & is_output)
