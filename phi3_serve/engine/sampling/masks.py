"""The constraints of the rows of one request, and their masks, which other threads compute while the model runs."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from phi3_serve.core.constraint import Constraint


class Mask(NamedTuple):
    """The tokens that are allowed, or all others, whichever are fewer."""

    token_ids: Any  # int64 [tokens]
    are_allowed: bool

    def allows_only(self, token_ids: Sequence[int]) -> bool:
        """Whether no other token than ``token_ids`` is allowed."""
        return self.are_allowed and bool(np.isin(self.token_ids, token_ids).all())


@dataclass(frozen=True, slots=True)
class PendingMask:
    """A mask that is being computed; ``number`` is its place among those of its row."""

    of_row: "Future[list[Mask]]"
    number: int

    def get(self) -> Mask:
        """Wait for the mask.

        Raises:
            InvalidRequest: see ``core.Constraint.mask``.
        """
        return self.of_row.result()[self.number]


class ConstrainedRows:
    """One constraint for each row. A row goes on with each token that is chosen for it."""

    def __init__(self, constraint: Constraint) -> None:
        """One row, which begins with a fork of ``constraint``."""
        self._constraints = [constraint.fork()]
        self._masks: list[Future[list[Mask]]] = []  # of the step that was launched last

    def start_equal(self, num_rows: int, pool: Executor, vocab_size: int) -> None:
        """Let ``pool`` compute the mask of the first step, in which all rows are equal."""
        wait(self._masks)  # of a first step that failed
        missing = num_rows - len(self._constraints)
        self._constraints += [self._constraints[0].fork() for _ in range(missing)]
        self._masks = [pool.submit(_masks_along, self._constraints[0], (), vocab_size)] * num_rows

    def start(self, drafts: Sequence[Sequence[int]], pool: Executor, vocab_size: int) -> None:
        """Let ``pool`` compute the masks of a step; ``drafts`` are the tokens that it drafts for each row."""
        wait(self._masks)  # of a step that failed
        self._masks = [
            pool.submit(_masks_along, constraint, draft, vocab_size)
            for constraint, draft in zip(self._constraints, drafts, strict=True)
        ]

    def mask(self, row: int, number: int = 0) -> PendingMask:
        """The mask of a row, behind ``number`` drafted tokens."""
        return PendingMask(self._masks[row], number)

    def num_allowed(self, draft: Sequence[int]) -> int:
        """How many tokens of ``draft``, one after another, the first row may get."""
        return self._constraints[0].num_allowed(draft)

    def advance(self, row: int, token: int) -> bool:
        """Let a row go on with ``token``. Returns whether it is allowed."""
        return self._constraints[row].advance(token)

    def reorder(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        """Row ``number`` goes on as row ``parents[number]`` did, with ``tokens[number]``."""
        wait(self._masks)  # those of a beam group that is done were not needed
        used: set[int] = set()
        rows = []
        for parent in parents:
            rows.append(self._constraints[parent].fork() if parent in used else self._constraints[parent])
            used.add(parent)
        for row, token in zip(rows, tokens, strict=True):
            row.advance(token)
        self._constraints = rows

    def remove(self, row: int) -> None:
        """Forget a row that has ended."""
        del self._constraints[row]

    def is_finished(self, row: int) -> bool:
        """Whether a row is complete, and only an end may come next."""
        return self._constraints[row].is_finished


def _masks_along(constraint: Constraint, draft: Sequence[int], vocab_size: int) -> list[Mask]:
    """The mask of the next token, and those of the tokens after each one of ``draft``, which are allowed."""
    masks = [_read(constraint.mask(), vocab_size)]
    ahead = constraint.fork() if draft else constraint
    for token in draft:
        ahead.advance(token)
        masks.append(_read(ahead.mask(), vocab_size))
    return masks


def _read(mask: bytes, vocab_size: int) -> Mask:
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=vocab_size, bitorder="little")
    allowed = np.flatnonzero(bits)
    if 2 * len(allowed) <= vocab_size:
        return Mask(allowed, are_allowed=True)
    return Mask(np.flatnonzero(bits == 0), are_allowed=False)
