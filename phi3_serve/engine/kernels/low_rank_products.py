"""The products of adapters as torch operations, for any device and dtype."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from phi3_serve.engine.kernels.contract import PAGE_RANK, AdaptedRows, AdaptedTiles, PagedLowRank


class LowRankProducts:
    """``contract.AdapterPlan`` that multiplies the rows of each sequence by themselves."""

    def __init__(self, rows: Sequence[AdaptedRows]) -> None:
        self._rows = rows

    def add(self, place: int, x: Tensor, output: Tensor) -> None:
        """See ``contract.AdapterPlan``."""
        for rows in self._rows:
            delta: Tensor | None = None
            for adapter, strength in rows.adapters:
                if (change := adapter.changes[place]) is None:
                    continue
                a, b = (matrix.to(x.device).float() for matrix in (change.a, change.b))
                products = linear(x[rows.first : rows.end].float(), a).mul_(change.scaling * strength) @ b
                delta = products if delta is None else delta.add_(products)
            if delta is not None:
                output[rows.first : rows.end] = delta.add_(output[rows.first : rows.end]).to(output.dtype)


def add_paged(x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
    """See ``contract.DeviceKernels.add_low_rank``. It waits for the device."""
    for first, count, first_page, num_pages in tiles.tiles[: int(tiles.num_tiles)].tolist():
        rows = tiles.rows[first : first + count].long()
        numbers, strengths = tiles.pages[first_page : first_page + num_pages].unbind(1)
        factors = strengths.contiguous().view(torch.float32) * change.scalings[numbers.long()]
        numbers, factors = numbers[factors != 0].long(), factors[factors != 0]
        a, b = (matrices[numbers].flatten(0, 1).float() for matrices in (change.a, change.b))
        products = linear(x[rows].float(), a).mul_(factors.repeat_interleave(PAGE_RANK)) @ b
        output[rows] = products.add_(output[rows]).to(output.dtype)
