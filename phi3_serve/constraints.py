"""Ranges and lengths of values, as metadata of ``typing.Annotated``.

Each is grouped metadata of the package annotated-types, so pydantic reads it as the classes of that package. They are
imported when a constraint is read: the engine never reads one, and runs without pydantic and annotated-types.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number within these bounds; None is no bound."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    __is_annotated_types_grouped_metadata__ = True

    def __iter__(self) -> Iterator[Any]:
        """The bounds as annotated-types has them."""
        import annotated_types

        if self.ge is not None:
            yield annotated_types.Ge(self.ge)
        if self.gt is not None:
            yield annotated_types.Gt(self.gt)
        if self.le is not None:
            yield annotated_types.Le(self.le)
        if self.lt is not None:
            yield annotated_types.Lt(self.lt)


@dataclass(frozen=True, slots=True)
class Length:
    """A list or text of this many items or characters."""

    shortest: int
    longest: int
    __is_annotated_types_grouped_metadata__ = True

    def __iter__(self) -> Iterator[Any]:
        """The lengths as annotated-types has them."""
        import annotated_types

        yield annotated_types.Len(self.shortest, self.longest)


@dataclass(frozen=True, slots=True)
class Predicate:
    """A value for which ``holds`` is true."""

    holds: Callable[[Any], bool]
    __is_annotated_types_grouped_metadata__ = True

    def __iter__(self) -> Iterator[Any]:
        """The condition as annotated-types has it."""
        import annotated_types

        yield annotated_types.Predicate(self.holds)
