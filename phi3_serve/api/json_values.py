"""How deeply JSON of a client may be nested."""

from collections.abc import Iterable
from typing import Any

from phi3_serve.errors import InvalidRequest

MAX_LEVELS = 128


def refuse_deep(value: Any, name: str) -> None:
    """Raise InvalidRequest if ``value`` of the field ``name`` is nested more deeply.

    Then it cannot be pickled, and llguidance does not take it either.
    """
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _members(outer)]:
        depth += 1
        if depth > MAX_LEVELS:
            raise InvalidRequest(f"`{name}` is nested more than {MAX_LEVELS} levels deep.", name)


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
