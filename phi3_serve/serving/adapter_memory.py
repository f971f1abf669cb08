"""The adapters in the main memory of a replica. The one that was not used for the longest time is dropped first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from phi3_serve.core.adapter import Adapter

Key = TypeVar("Key", bound=Hashable)


class AdapterMemory(Generic[Key]):
    """Loaded adapters of at most ``max_bytes`` together.

    The one that was used last stays, whatever its size: it would otherwise be loaded for each request. An adapter that
    is dropped here lives on while a request in flight holds it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._adapters: OrderedDict[Key, Adapter] = OrderedDict()
        self.num_bytes = 0  # of all adapters
        self.num_evictions = 0

    def __len__(self) -> int:
        return len(self._adapters)

    def get(self, key: Key) -> Adapter | None:
        """The adapter, which becomes the one that was used last; None if it is not here."""
        if (found := self._adapters.get(key)) is not None:
            self._adapters.move_to_end(key)
        return found

    def add(self, key: Key, adapter: Adapter) -> None:
        """Add an adapter as the one that was used last, and drop others until all fit."""
        self._drop(key)
        self._adapters[key] = adapter
        self.num_bytes += adapter.num_bytes
        while len(self._adapters) > 1 and self.num_bytes > self._max_bytes:
            self._drop(next(iter(self._adapters)))
            self.num_evictions += 1

    def keep(self, is_kept: Callable[[Key], bool]) -> None:
        """Drop the adapters that are not to be kept. They do not count as evicted."""
        for key in [key for key in self._adapters if not is_kept(key)]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        if (dropped := self._adapters.pop(key, None)) is not None:
            self.num_bytes -= dropped.num_bytes
