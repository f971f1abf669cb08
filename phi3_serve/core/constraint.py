"""The protocol of what restricts an answer, such as a grammar."""

from collections.abc import Sequence
from typing import Protocol


class Constraint(Protocol):
    """What the rest of one sequence may be, for example JSON of a schema.

    Threads may share a constraint, but only one at a time may use it. An end-of-sequence token is allowed where the
    sequence is complete. After an end, or after a token that is not allowed, nothing is allowed.
    """

    def mask(self) -> bytes:
        """Which tokens may come next: one bit for each token id, the lowest bit of the first byte for id 0.

        The call releases Python's lock.

        Raises:
            InvalidRequest: what may come next is too complex to be computed.
        """

    def advance(self, token: int) -> bool:
        """Go on after ``token``. Returns whether it was allowed."""

    def num_allowed(self, tokens: Sequence[int]) -> int:
        """How many of ``tokens`` may come next, one after another; may be less than possible."""

    def fork(self) -> "Constraint":
        """A constraint in the same state that goes on separately."""

    @property
    def is_finished(self) -> bool:
        """Whether the sequence is complete, and only an end may come next."""
