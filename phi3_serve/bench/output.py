"""Where the figures of a benchmark go: a table or JSON on stdout, and bars in a file."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from phi3_serve.bar_chart import Curves, Panel, drawn


@dataclass(frozen=True, slots=True)
class Output:
    """What the command line asks for."""

    as_json: bool = False  # instead of a table
    svg: Path | None = None  # the file of the bars

    def show(
        self, report: Any, panels: Callable[[Any], Sequence[Panel | Curves]], table: Callable[[], Table], *, width: int
    ) -> None:
        """Print ``report``, of which ``panels`` makes bars. ``width``: columns of the table if it goes into a pipe."""
        text = json.dumps(report, default=str)  # a path as its text
        if self.svg is not None:
            self.svg.write_text(drawn(panels(json.loads(text)), f"phi3-serve {' '.join(sys.argv[1:])}"))
        if self.as_json:
            print(text)
        else:
            Console(width=None if sys.stdout.isatty() else width).print(table())
