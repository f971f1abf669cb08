"""``make gpu``: whether the engine is right on this GPU, and how fast it is beside the limits of the card.

The parts run in a worker process, the most telling ones first, until ``BUDGET_S`` are over; ``make gpu PARTS="..."`` runs the
parts that are named, for example those for which no time was left. A part that fails, hangs or ends its process does not
stop the others. The report, the plot and the output of all parts are written after each part to the folder in $OUT. It needs
only what the engine needs: torch, transformers, triton, numpy, psutil, rich and typer.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from phi3_serve.bar_chart import Bar, Panel, drawn
from phi3_serve.engine.allocator_options import set_allocator_options
from tests.gpu.worker import END, LAST

ROOT = Path(__file__).parents[2]
BUDGET_S = 530.0
LEAST_S = 15.0  # with less time left, no part begins
LOOKS_EVERY_S = 0.5  # whether the worker lives
LAST_LINES = 40  # of the output of a part that failed, in the report
PASSED = "passed"
NOT_RUN, CUT = "not run, no time was left", "stopped, no time was left"  # neither is a failure


@dataclass(frozen=True, slots=True)
class Part:
    """A function that measures or checks; it raises an error if something is wrong, and returns its figures."""

    function: str  # in a module of tests.gpu
    arguments: tuple[str, ...]
    limit_s: float


PARTS: dict[str, Part] = {
    "card": Part("checks:card", (), 40),
    "kernels": Part("checks:kernels", (), 90),
    "prompts": Part("prompts:main", (), 70),
    "chunks": Part("chunks:main", (), 40),
    "parity": Part("checks:parity", (), 70),
    "mini": Part("speed:main", ("mini",), 100),
    "memory": Part("checks:memory", (), 60),
    "trouble": Part("trouble:main", (), 60),
    "quantized": Part("checks:quantized", (), 90),
    "caches": Part("checks:caches", (), 90),
    "adapters": Part("checks:adapters", (), 90),
    "fp8": Part("checks:fp8", (), 60),
    "sampler": Part("checks:sampler", (), 40),
    "kaito": Part("peers:main", ("mini", "kaito"), 150),
    "beams": Part("peers:main", ("mini", "beams"), 120),
    "mini-int4": Part("speed:main", ("mini", "int4"), 90),
    "mini-fp8": Part("speed:main", ("mini", "fp8"), 90),
    "mini-fp8-cache": Part("speed:main", ("mini", "none", "fp8"), 90),
    "medium": Part("speed:main", ("medium",), 110),
    "parity-int8-cache": Part("checks:parity", ("none", "int8"), 70),
    "parity-int4": Part("checks:parity", ("int4",), 70),
    "mini-int8": Part("speed:main", ("mini", "int8"), 90),
    "mini-int8-cache": Part("speed:main", ("mini", "none", "int8"), 90),
    "parity-fp8-cache": Part("checks:parity", ("none", "fp8"), 70),
    "batching": Part("peers:main", ("mini", "batching"), 120),
}


@dataclass(slots=True)
class Result:
    """What came of a part."""

    verdict: str
    seconds: float = 0.0
    figures: Any = None
    last_lines: list[str] = field(default_factory=list)  # if it failed


class Worker:
    """The process that runs parts; a new one whenever the last one has ended."""

    def __init__(self, log: IO[str]) -> None:
        """``log`` gets the output of all parts."""
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def run(self, part: Part, left_s: float, path: Path) -> Result:
        """Run ``part`` to its limit, or for the ``left_s`` that all parts have left; its figures go to ``path``."""
        began = time.monotonic()
        limit_s = min(part.limit_s, left_s)
        verdict, lines = "", []
        for line in self._output(part, began + limit_s, limit_s, path):
            if line is None:
                verdict = CUT if left_s < part.limit_s else f"stopped after {limit_s:.0f} s"
            elif END.decode() in line:
                verdict = PASSED
                if LAST.decode() in line:
                    self.end()
            else:
                lines.append(line)
                print(line, flush=True)
                print(line, file=self._log, flush=True)
        if verdict != PASSED:
            code = self.end()
            verdict = verdict or f"failed ({code})"
        figures = json.loads(path.read_text()) if path.exists() else None
        path.unlink(missing_ok=True)
        is_wrong = verdict != PASSED
        return Result(verdict, time.monotonic() - began, figures, lines[-LAST_LINES:] if is_wrong else [])

    def end(self) -> int | None:
        """End the process and all that it has started; its exit code."""
        if self._process is None:
            return None
        # One that has died by itself has told how; the others of its group may still hold memory of the GPU.
        code = self._process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        return code

    def _output(self, part: Part, until: float, limit_s: float, path: Path) -> Iterator[str | None]:
        """The lines of ``part`` to the one that ends it; None if its time is over. Fewer if the process ends."""
        if self._process is None or self._process.poll() is not None:
            self.end()
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        module, function = part.function.split(":")
        order = {
            "module": module if "." in module else f"tests.gpu.{module}",
            "function": function,
            "arguments": part.arguments,
            "until": time.time() + limit_s,  # this process has perhaps to start first
            "path": str(path),
        }
        with suppress(BrokenPipeError):  # it has just died; its output says why
            process.stdin.write(json.dumps(order).encode() + b"\n")
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                has_ended = process.poll() is not None  # processes that it has started may keep the pipe open
                if selector.select(0 if has_ended else max(0.0, min(LOOKS_EVERY_S, until - time.monotonic()))):
                    read = os.read(process.stdout.fileno(), 1 << 16)
                    *lines, self._unread = (self._unread + read).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
                        if END in line:
                            return
                    if not read:
                        process.wait()
                        return
                elif has_ended:
                    return
                if time.monotonic() >= until:
                    yield None
                    return

    def _start(self) -> None:
        self._unread = b""
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-u", "-X", "faulthandler", "-m", "tests.gpu.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            process_group=0,  # so that all processes of a part can be ended together
        )


def _environment() -> dict[str, str]:
    """That of a worker, with the memory of the GPU as a replica has it."""
    environment = dict(os.environ)
    set_allocator_options(environment)
    return environment


def run_parts(parts: Sequence[tuple[str, Part]], folder: Path, *, command: str, budget_s: float = BUDGET_S) -> int:
    """Run ``parts`` in this order and write the report to ``folder`` after each; 1 if one failed or hung."""
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + budget_s
    results = {name: Result(NOT_RUN) for name, _ in parts}
    with (folder / "log.txt").open("w") as log:
        worker = Worker(log)
        try:
            for name, part in parts:
                if (left_s := until - time.monotonic()) < LEAST_S:
                    break
                print(f"== {name}", flush=True)
                results[name] = worker.run(part, left_s, folder / f"{name}.json")
                print(f"== {name}: {results[name].verdict} ({results[name].seconds:.0f} s)", flush=True)
                write_report(results, folder, command)
        finally:
            worker.end()
    Console(width=100).print(table(results))
    if left := [name for name, result in results.items() if result.verdict in (NOT_RUN, CUT)]:
        print(f'No time was left: make gpu PARTS="{" ".join(left)}"')
    return int(any(result.verdict not in (PASSED, NOT_RUN, CUT) for result in results.values()))


def write_report(results: dict[str, Result], folder: Path, command: str) -> None:
    """The figures as JSON, and a plot of those that have a limit."""
    card = results["card"].figures if "card" in results else None
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "card": card,
        "parts": {
            name: {
                "verdict": result.verdict,
                "seconds": round(result.seconds, 1),
                "figures": result.figures,
                "last_lines": result.last_lines,
            }
            for name, result in results.items()
        },
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    if panels := [panel for name, result in results.items() for panel in panels_of(name, result.figures)]:
        source = f"{command} · {card['name'] if card else 'GPU'} · {report['date']}"
        (folder / "gpu.svg").write_text(drawn(panels, source))


def panels_of(name: str, figures: Any) -> Iterator[Panel]:
    """Bars of a part: shares of the limit of the card, or tokens per second of competitors."""
    if not isinstance(figures, dict):
        return
    of_limit = {key: of["of_limit"] for key, of in figures.items() if isinstance(of, dict) and "of_limit" in of}
    if of_limit:
        yield Panel(f"{name}, % of the card's limit", tuple(Bar(k, 100 * v) for k, v in of_limit.items()), 100)
    if lines := figures.get("lines"):
        bars = (
            Bar(f"{line['name']}, {line['workload']}", line["tokens_per_s"], line["name"].startswith("phi3-serve"))
            for line in lines
        )
        yield Panel(f"{name}, tokens per second", tuple(bars))


def table(results: dict[str, Result]) -> Table:
    """The verdicts."""
    shown = Table("part", "verdict", "seconds")
    for name, result in results.items():
        shown.add_row(name, result.verdict, f"{result.seconds:.0f}")
    return shown


def main(names: Sequence[str]) -> int:
    """Run the parts ``names``, or all."""
    if unknown := [name for name in names if name not in PARTS]:
        print(f"PARTS has {', '.join(unknown)}; allowed are {', '.join(PARTS)}")
        return 2
    chosen = [(name, PARTS[name]) for name in names or PARTS]
    command = " ".join(["make gpu", *([f'PARTS="{" ".join(names)}"'] if names else [])])
    return run_parts(chosen, Path(os.environ.get("OUT", "gpu-report")), command=command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
