"""Ranges and lengths of values, as metadata of ``typing.Annotated``.

Each is grouped metadata of the package annotated-types, so pydantic reads it as the classes of that package. They are
imported when pydantic reads a constraint. The engine runs without both packages; it uses ``allows`` and ``in_words``.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A number within these bounds; None is no bound."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    __is_annotated_types_grouped_metadata__ = True

    def allows(self, value: Any) -> bool:
        """Whether ``value`` is within the bounds."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def in_words(self) -> str:
        """For example "at least 0 and below 1"."""
        bounds = [("at least", self.ge), ("above", self.gt), ("at most", self.le), ("below", self.lt)]
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

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

    def allows(self, value: Any) -> bool:
        """Whether ``value`` has such a length."""
        return self.shortest <= len(value) <= self.longest

    def in_words(self) -> str:
        """For example "(1 to 16)"."""
        return f"({self.shortest} to {self.longest})"

    def __iter__(self) -> Iterator[Any]:
        """The lengths as annotated-types has them."""
        import annotated_types

        yield annotated_types.Len(self.shortest, self.longest)


@dataclass(frozen=True, slots=True)
class Predicate:
    """A value for which ``holds`` is true."""

    holds: Callable[[Any], bool]
    __is_annotated_types_grouped_metadata__ = True

    def allows(self, value: Any) -> bool:
        """Whether the condition holds."""
        return self.holds(value)

    def in_words(self) -> str:
        """Nothing: a function has no words."""
        return ""

    def __iter__(self) -> Iterator[Any]:
        """The condition as annotated-types has it."""
        import annotated_types

        yield annotated_types.Predicate(self.holds)


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def allows(annotation: Any, value: object) -> bool:
    """Whether ``annotation``, the type of a field, allows ``value``, which comes from JSON."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *constraints = arguments
        return allows(base, value) and all(constraint.allows(value) for constraint in constraints)
    if origin in (Union, UnionType):
        return any(allows(option, value) for option in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(allows(arguments[0], item) for item in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(allows, arguments, value))
    if origin is dict:
        return isinstance(value, dict)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, annotation)


def in_words(annotation: Any) -> str:
    """What ``annotation`` allows, for an error. Null, which is the same as leaving the field out, is not mentioned."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *constraints = arguments
        return " ".join(filter(None, [in_words(base), *(constraint.in_words() for constraint in constraints)]))
    if origin in (Union, UnionType):
        return " or ".join(in_words(option) for option in arguments if option is not NoneType)
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is list:
        return f"a list of [{in_words(arguments[0])}]"
    if origin is tuple:
        return f"[{', '.join(map(in_words, arguments))}]"
    return "an object" if origin is dict else _WORDS[annotation]
