"""What a part of ``make gpu`` tells while it runs: lines with the time since its start, and its figures so far."""

import json
import time
from pathlib import Path
from typing import Any

_began = time.time()
_path: Path | None = None


def begin(path: Path) -> None:
    """A part starts, whose figures go to ``path``."""
    global _began, _path
    _began, _path = time.time(), path


def say(*words: Any) -> None:
    """Print a line with the seconds since the start of the part."""
    print(f"[{time.time() - _began:5.1f}s]", *words, flush=True)


def write(figures: dict[str, Any]) -> None:
    """Keep the figures so far, for the case that the part does not end."""
    if _path is not None:
        _path.write_text(json.dumps(figures))
