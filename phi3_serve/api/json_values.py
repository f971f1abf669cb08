"""JSON of a client that goes on as it is: schemas, and arguments of calls."""

import json
from collections.abc import Iterable
from typing import Any

from phi3_serve.errors import InvalidRequest

MAX_LEVELS = 128


def check_json(value: Any, name: str) -> None:
    """Raise InvalidRequest if ``value`` of the field ``name`` cannot be passed on.

    What is nested more deeply cannot be pickled, and llguidance does not take it either. Python's reader takes NaN,
    which is no JSON, and halves of surrogate pairs, which cannot be encoded.
    """
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _members(outer)]:
        depth += 1
        if depth > MAX_LEVELS:
            raise InvalidRequest(f"`{name}` is nested more than {MAX_LEVELS} levels deep.", name)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"`{name}` holds half of a surrogate pair, which is no character.", name) from None
    except ValueError:
        raise InvalidRequest(f"`{name}` holds NaN or Infinity, which JSON does not have.", name) from None


def _members(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
