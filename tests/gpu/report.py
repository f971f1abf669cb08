"""Lines with the time since the start, and the figures of a part for the report."""

import json
import sys
import time
from pathlib import Path
from typing import Any

_BEGAN = time.time()


def say(*words: Any) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.time() - _BEGAN:5.1f}s]", *words, flush=True)


def write(figures: dict[str, Any]) -> None:
    """Write the figures of this part to the path in the last argument of the process."""
    Path(sys.argv[-1]).write_text(json.dumps(figures))
