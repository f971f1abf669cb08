"""The tokens of all answers of a batch."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# How chat completions and completions call the tokens, and how responses do.
_INPUT, _OUTPUT = ("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details")


def usage_of(path: Path) -> dict[str, int]:
    """The tokens of the answers in the file at ``path``: ``input_tokens``, ``cached_tokens`` and ``output_tokens``."""
    total = Counter(input_tokens=0, cached_tokens=0, output_tokens=0)
    with path.open("rb") as file:
        for raw in file:
            usage = _usage(raw)
            total["input_tokens"] += _number(usage, _INPUT)
            total["output_tokens"] += _number(usage, _OUTPUT)
            for name in _INPUT_DETAILS:
                total["cached_tokens"] += _number(usage.get(name), ("cached_tokens",))
    return dict(total)


def _usage(raw: bytes) -> Mapping[str, Any]:
    try:
        usage = json.loads(raw)["response"]["body"]["usage"]
    except (KeyError, TypeError, ValueError):
        return {}
    return usage if isinstance(usage, dict) else {}


def _number(usage: Any, names: tuple[str, ...]) -> int:
    found = [usage.get(name) for name in names] if isinstance(usage, dict) else []
    return next((value for value in found if isinstance(value, int)), 0)
