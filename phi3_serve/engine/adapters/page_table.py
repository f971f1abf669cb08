"""Which pages of a device hold which adapters. The least recently used ones give theirs away. Plain Python."""

from collections.abc import Collection

Mix = tuple[tuple[int, int], ...]
"""The pages of the adapters of a row: the number of each, and the bits of its strength in float32."""


class PageTable:
    """The pages of a device, by the numbers of the adapters that they hold.

    Pages have one size, so adapters whose pages are few enough together always fit together.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages))
        self._held: dict[int, tuple[int, ...]] = {}  # the least recently used adapter is the first

    def __contains__(self, adapter: int) -> bool:
        return adapter in self._held

    def find(self, adapter: int) -> tuple[int, ...] | None:
        """The pages of ``adapter``, which is then the most recently used one; None if it has none."""
        pages = self._held.pop(adapter, None)
        if pages is not None:
            self._held[adapter] = pages
        return pages

    def assign(self, adapter: int, count: int, in_use: Collection[int]) -> tuple[int, ...] | None:
        """``count`` pages for ``adapter``, which has none; adapters other than those ``in_use`` may lose theirs.

        Returns None, and takes pages from nobody, if that is not enough.
        """
        unused = [other for other in self._held if other not in in_use]
        if count > len(self._free) + sum(len(self._held[other]) for other in unused):
            return None
        for other in unused:
            if len(self._free) >= count:
                break
            self._free += self._held.pop(other)
        pages = tuple(self._free[:count])
        del self._free[:count]
        self._held[adapter] = pages
        return pages
