"""Adapters as a device reads them: in pages of 16 ranks, each of which is one piece of memory.

A page has the scalings of all linear layers, and then for each layer 16 rows of A and of B. So an adapter of rank 16 is
one copy to the device, and several adapters of one request are nothing but more pages.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.places import shapes
from phi3_serve.engine.kernels.contract import PAGE_RANK, LowRank, PagedLowRank

_ALIGNMENT = 128  # bytes


class PageLayout:
    """Where the matrices of each linear layer are in the pages of a model."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        """For a model with the Phi3Config ``config`` that computes in ``dtype``."""
        self.dtype = dtype
        self._shapes = shapes(config)
        self._starts: list[tuple[int, int]] = []  # of A and of B, in elements
        end = self._aligned(len(self._shapes) * torch.float32.itemsize // dtype.itemsize)
        for outputs, inputs in self._shapes:
            of_b = end + self._aligned(PAGE_RANK * inputs)
            self._starts.append((end, of_b))
            end = of_b + self._aligned(PAGE_RANK * outputs)
        self.num_elements = end

    @property
    def num_bytes(self) -> int:
        """Of one page."""
        return self.num_elements * self.dtype.itemsize

    @property
    def num_places(self) -> int:
        """Linear layers of the model."""
        return len(self._shapes)

    def of_place(self, pages: Tensor, place: int) -> PagedLowRank:
        """What ``pages`` [pages, elements] have of one linear layer, as views."""
        outputs, inputs = self._shapes[place]
        of_a, of_b = self._starts[place]
        return PagedLowRank(
            pages[:, of_a : of_a + PAGE_RANK * inputs].unflatten(1, (PAGE_RANK, inputs)),
            pages[:, of_b : of_b + PAGE_RANK * outputs].unflatten(1, (PAGE_RANK, outputs)),
            pages.view(torch.float32)[:, place],
        )

    def _aligned(self, elements: int) -> int:
        alignment = _ALIGNMENT // self.dtype.itemsize
        return -(-elements // alignment) * alignment


class PagedAdapter:
    """``core.Adapter`` in the main memory, as pages that a device copies."""

    def __init__(self, loaded: LoadedAdapter, layout: PageLayout, *, is_pinned: bool) -> None:
        """Copy ``loaded``. ``is_pinned``: whether a device copies the pages while the host goes on."""
        self.name = loaded.name
        self.number = loaded.number
        self.rank = loaded.rank
        self.places = frozenset(place for place, change in enumerate(loaded.changes) if change is not None)
        size = (num_pages(loaded.rank), layout.num_elements)
        self.pages = torch.zeros(size, dtype=layout.dtype, pin_memory=is_pinned)
        for place in self.places:
            _copy(loaded.changes[place], layout.of_place(self.pages, place))

    @property
    def num_bytes(self) -> int:
        """What its pages take."""
        return self.pages.nbytes


def num_pages(rank: int) -> int:
    """Pages of an adapter."""
    return -(-rank // PAGE_RANK)


def _copy(change: LowRank | None, pages: PagedLowRank) -> None:
    """Copy the matrices to the first pages. Pages beyond the rank of this layer keep the scaling 0."""
    if change is None:
        return
    for page, ranks in enumerate(_slices(change.rank)):
        a, b = change.a[ranks], change.b[ranks]
        pages.a[page, : len(a)] = a
        pages.b[page, : len(b)] = b
        pages.scalings[page] = change.scaling


def _slices(rank: int) -> Iterator[slice]:
    return (slice(start, start + PAGE_RANK) for start in range(0, rank, PAGE_RANK))
