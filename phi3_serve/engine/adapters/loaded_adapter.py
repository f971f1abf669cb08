"""An adapter in the main memory."""

from collections.abc import Sequence
from itertools import count

from phi3_serve.engine.kernels.contract import LowRank

_numbers = count(1)


class LoadedAdapter:
    """``core.Adapter`` and ``contract.LowRankAdapter``: what an adapter adds to each linear layer of a model."""

    def __init__(self, name: str, changes: Sequence[LowRank | None]) -> None:
        """``changes``: by the numbers of ``places``."""
        self.name = name
        self.number = next(_numbers)
        self.changes = tuple(changes)

    @property
    def rank(self) -> int:
        """The largest rank of its changes."""
        return max(change.rank for change in self.changes if change is not None)

    @property
    def num_bytes(self) -> int:
        """What its matrices take."""
        return sum(change.a.nbytes + change.b.nbytes for change in self.changes if change is not None)
