"""Dataclasses that processes of different versions of phi3-serve can read from each other, as during a rollout."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)


def pickled_by_name(cls: _Class) -> _Class:
    """Let the dataclass ``cls`` be pickled with the names of its fields.

    Python pickles frozen dataclasses with slots by the positions of their fields. Another version may have a field more
    or less. Here a reader ignores a field that it does not know, and one that is missing has its default.
    """
    names = tuple(field.name for field in fields(cls))

    def reduce(self: Any) -> tuple[Callable[..., Any], tuple[type, dict[str, Any]]]:
        return _restored, (cls, {name: getattr(self, name) for name in names})

    cls.__reduce__ = reduce  # type: ignore[method-assign, assignment]
    return cls


def _restored(cls: Any, state: Mapping[str, Any]) -> Any:
    """The object of ``cls`` with the fields of ``state`` that ``cls`` has.

    Raises:
        TypeError: a field is missing that has no default.
    """
    known = cls.__dataclass_fields__
    return cls(**{name: value for name, value in state.items() if name in known})
