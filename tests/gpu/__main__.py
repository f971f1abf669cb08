"""``make gpu``: whether the engine is right on this GPU, and how fast it is beside the limits of the card.

Each part runs in a process of its own with a limit of time. A part that fails does not stop the others. It needs only
what the engine needs: torch, transformers, triton, numpy, psutil, rich and typer.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import triton
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
# name: (module, arguments, most seconds)
PARTS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "kernels": ("checks", ("kernels",), 60),
    "sampler": ("checks", ("sampler",), 40),
    "quantized": ("checks", ("quantized",), 60),
    "parity": ("checks", ("parity",), 90),
    "parity int4": ("checks", ("parity", "int4"), 90),
    "mini": ("speed", ("mini",), 100),
    "medium": ("speed", ("medium",), 110),
    "mini int8": ("speed", ("mini", "int8"), 100),
    "mini int4": ("speed", ("mini", "int4"), 100),
    "kaito": ("peers", ("mini", "kaito"), 120),
    "beams": ("peers", ("mini", "beams"), 120),
    "batching": ("peers", ("mini", "batching"), 90),
}


def main() -> int:
    """Run the parts named in the arguments, or all; write a report to the folder in $OUT; 1 if a part failed."""
    folder = Path(os.environ.get("OUT", "gpu-report"))
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {}
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "card": torch.cuda.get_device_name(0),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "triton": triton.__version__,
        },
        "command": "make gpu",
        "parts": parts,
    }
    table = Table("part", "verdict", "seconds", title=f"{report['card']}, torch {torch.__version__}")
    for name in sys.argv[1:] or PARTS:
        verdict, seconds, figures = run(name, folder / f"{name}.json")
        parts[name] = {"verdict": verdict, "seconds": seconds, "figures": figures}
        table.add_row(name, verdict, f"{seconds:.0f}")
        (folder / "report.json").write_text(json.dumps(report, indent=1))
    Console(width=100).print(table)
    return 0 if all(part["verdict"] == "passed" for part in parts.values()) else 1


def run(name: str, path: Path) -> tuple[str, float, object]:
    """Verdict, seconds and figures of one part."""
    module, arguments, limit_s = PARTS[name]
    print(f"== {name}", flush=True)
    began = time.time()
    try:
        code = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"tests.gpu.{module}", *arguments, str(path)],
            cwd=ROOT,
            timeout=limit_s,
        ).returncode
        verdict = "passed" if code == 0 else f"failed ({code})"
    except subprocess.TimeoutExpired:
        verdict = f"stopped after {limit_s} s"
    figures = json.loads(path.read_text()) if path.exists() else None
    path.unlink(missing_ok=True)
    return verdict, time.time() - began, figures


if __name__ == "__main__":
    sys.exit(main())
