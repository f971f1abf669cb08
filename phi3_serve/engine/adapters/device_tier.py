"""The adapters on a device: a pool of pages, which copies from the main memory fill while steps go on.

All methods but ``prepare`` and ``check`` belong to the engine's thread.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.page_table import Mix, PageTable
from phi3_serve.engine.adapters.pages import PagedAdapter, PageLayout, num_pages
from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels.contract import MAX_PAGES, PAGE_RANK, PagedLowRank
from phi3_serve.errors import InvalidRequest, MemoryFull

_MAX_STRENGTH = torch.finfo(torch.float32).max


class Copied(Protocol):
    """A copy that may still be under way."""

    def is_done(self) -> bool:
        """Whether all pages are on the device."""

    def before_next_step(self) -> None:
        """Let the device wait for the copy before it goes on; the host does not wait."""


Copy = Callable[[Tensor, Tensor, Sequence[int]], Copied]
"""Begins to copy pages [count, elements] to the pages of a pool with the given numbers."""


class DeviceTier:
    """The pages of a device and the adapters in them."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device, num_bytes: int, copy: Copy) -> None:
        """For a model with the Phi3Config ``config`` that computes in ``dtype``.

        Args:
            config: of the model.
            dtype: of the matrices.
            device: of the pool. It takes no memory before the first adapter is prepared.
            num_bytes: of the pool, at most.
            copy: to the device.
        """
        self.layout = PageLayout(config, dtype)
        self.num_pages = num_bytes // self.layout.num_bytes
        self._device = device
        self._copy = copy
        self._table = PageTable(self.num_pages)
        self._copies: dict[int, Copied] = {}  # under way, by the numbers of the adapters
        self._pool: Tensor | None = None
        self._changes: list[PagedLowRank] = []
        self._lock = Lock()

    @property
    def has_pool(self) -> bool:
        """Whether an adapter was ever prepared."""
        return self._pool is not None

    def prepare(self, loaded: LoadedAdapter) -> PagedAdapter:
        """``loaded`` in the form that the device copies. It may be called on any thread; the first call makes the pool.

        Raises:
            MemoryFull: the adapter does not fit into the pool, or the pool into the memory.
        """
        if (count := num_pages(loaded.rank)) > self.num_pages:
            raise MemoryFull(
                f"adapter {loaded.name} has rank {loaded.rank} and takes {self._megabytes(count)} on the device, "
                f"which has {self._megabytes(self.num_pages)} for adapters"
            )
        with self._lock:
            if self._pool is None:
                self._make_pool()
        try:
            return PagedAdapter(loaded, self.layout, is_pinned=self._device.type == "cuda")
        except (MemoryError, RuntimeError) as error:
            if kind_of(error) != "memory":
                raise
            raise MemoryFull(f"the main memory has no {self._megabytes(count)} for adapter {loaded.name}") from error

    def check(self, adapters: Sequence[AppliedAdapter]) -> None:
        """Refuse adapters that the device cannot hold or compute together.

        Raises:
            InvalidRequest: of the field ``adapters``.
        """
        count = sum(len(adapter.pages) for adapter in _paged(adapters))
        if count > MAX_PAGES:
            raise InvalidRequest(
                f"`adapters` have ranks of {count * PAGE_RANK} together, each rounded up to a multiple of {PAGE_RANK}; "
                f"at most {MAX_PAGES * PAGE_RANK} are allowed in one request.",
                "adapters",
            )
        if count > self.num_pages:
            raise InvalidRequest(
                f"`adapters` take {self._megabytes(count)} together on the device, which has "
                f"{self._megabytes(self.num_pages)} for adapters.",
                "adapters",
            )
        if any(abs(applied.strength) > _MAX_STRENGTH for applied in adapters):
            raise InvalidRequest(f"`adapters`: strengths are at most {_MAX_STRENGTH:.3g}.", "adapters")

    def can_start(self, adapters: Sequence[AppliedAdapter], running: Iterable[AppliedAdapter]) -> bool:
        """Whether a request with ``adapters`` can run beside those that run with the adapters ``running``.

        It cannot while the pages of ``adapters`` are copied, or while adapters in use leave too few pages. If they fit,
        the copy begins.
        """
        wanted = _paged(adapters)
        in_use = {adapter.number for adapter in (*wanted, *_paged(running))}
        is_there = [self._place(adapter, in_use) is not None for adapter in wanted]
        return all(is_there) and all(self._is_copied(adapter) for adapter in wanted)

    def mixes(self, of_chunks: Iterable[Sequence[AppliedAdapter]]) -> list[Mix]:
        """The pages of the adapters of each chunk of the next step. The device waits for the copies that it needs."""
        of_step = list(of_chunks)
        in_use = {adapter.number for adapters in of_step for adapter in _paged(adapters)}
        known: dict[int, Mix] = {}  # the sequences of a request share their adapters
        mixes = []
        for adapters in of_step:
            if id(adapters) not in known:
                known[id(adapters)] = tuple(pair for applied in adapters for pair in self._pages(applied, in_use))
            mixes.append(known[id(adapters)])
        return mixes

    def change(self, place: int) -> PagedLowRank:
        """What the pages change in one linear layer; always at the same addresses."""
        return self._changes[place]

    def _pages(self, applied: AppliedAdapter, in_use: set[int]) -> list[tuple[int, int]]:
        (adapter,) = _paged([applied])
        pages = self._place(adapter, in_use)
        if pages is None:
            raise RuntimeError(f"{adapter.name} does not fit into the {self.num_pages} pages of the device")
        if (copied := self._copies.pop(adapter.number, None)) is not None:
            copied.before_next_step()
        return [(page, _bits(applied.strength)) for page in pages]

    def _place(self, adapter: PagedAdapter, in_use: set[int]) -> tuple[int, ...] | None:
        if (pages := self._table.find(adapter.number)) is None:
            pages = self._table.assign(adapter.number, len(adapter.pages), in_use)
            if pages is not None and self._pool is not None:
                self._copies = {number: copied for number, copied in self._copies.items() if number in self._table}
                self._copies[adapter.number] = self._copy(adapter.pages, self._pool, pages)
        return pages

    def _is_copied(self, adapter: PagedAdapter) -> bool:
        copied = self._copies.get(adapter.number)
        return copied is None or copied.is_done()

    def _make_pool(self) -> None:
        try:
            pool = torch.zeros(self.num_pages, self.layout.num_elements, dtype=self.layout.dtype, device=self._device)
        except RuntimeError as error:
            if kind_of(error) != "memory":
                raise
            raise MemoryFull(
                f"the device has no memory for the {self._megabytes(self.num_pages)} of adapters; "
                "another process uses it"
            ) from error
        self._changes = [self.layout.of_place(pool, place) for place in range(self.layout.num_places)]
        self._pool = pool

    def _megabytes(self, pages: int) -> str:
        return f"{pages * self.layout.num_bytes / 1e6:,.1f} MB"


class _Done:
    """``Copied`` that took place at once."""

    def is_done(self) -> bool:
        """See ``Copied``."""
        return True

    def before_next_step(self) -> None:
        """See ``Copied``."""


def copy_at_once(source: Tensor, pool: Tensor, pages: Sequence[int]) -> Copied:
    """``Copy`` within the main memory."""
    pool[list(pages)] = source
    return _Done()


class _OnStream:
    """``Copied`` that an event ends."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def is_done(self) -> bool:
        """See ``Copied``."""
        return bool(self._event.query())

    def before_next_step(self) -> None:
        """See ``Copied``."""
        torch.cuda.current_stream().wait_event(self._event)


class StreamCopy:
    """``Copy`` from pinned memory to a GPU, on a stream of its own beside the steps."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def __call__(self, source: Tensor, pool: Tensor, pages: Sequence[int]) -> Copied:
        """The steps that are launched already may read what the pages had before, so the copy follows them."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for of_adapter, page in zip(source, pages, strict=True):
                pool[page].copy_(of_adapter, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _OnStream(event)


def _paged(adapters: Iterable[AppliedAdapter]) -> list[PagedAdapter]:
    return [applied.adapter for applied in adapters if isinstance(applied.adapter, PagedAdapter)]


def _bits(strength: float) -> int:
    """Of ``strength`` in float32, as an int32."""
    bits: int = struct.unpack("i", struct.pack("f", strength))[0]
    return bits
