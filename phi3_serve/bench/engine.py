"""``phi3-serve bench engine``: the engine alone, beside its peers, against what the machine allows.

Everything is measured in one process and one run, contestants taking turns, so that a slow hour of the machine is
everybody's. Prompts share nothing, the prefix cache is off, answers have a fixed length.
"""

import json
import statistics
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from phi3_serve import __version__
from phi3_serve.bench.contestants import Contestant, ContinuousBatching, Ours, Pipeline, Run
from phi3_serve.bench.limits import LinearLayers, Machine, measure_machine, roofline_seconds
from phi3_serve.bench.shapes import build
from phi3_serve.bench.workload import Workload
from phi3_serve.engine.linear import compute_dtype

PEERS = ("generate", "batching")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure."""

    shape: str
    device: str
    dtype: str
    peer_dtype: str
    concurrency: tuple[int, ...]
    workloads: tuple[str, ...]
    peers: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    requests: int  # per run; 0: twice the concurrency
    rounds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Line:
    """One contestant at one concurrency: medians over the rounds."""

    name: str
    workload: str
    concurrency: int
    tokens_per_s: float
    spread: float  # (largest - smallest) / median
    step_ms: float | None
    first_token_ms: float | None
    of_linear_layers: float | None  # time of the linear layers alone / time taken
    of_roofline: float | None


def run(settings: Settings, *, as_json: bool) -> None:
    """Measure, print progress on stderr and a table, or JSON, on stdout."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    transformers.logging.set_verbosity_error()
    with _progress() as progress:
        task = progress.add_task(f"making {settings.shape}", total=None)
        bench = EngineBench(settings)
        for number in range(settings.rounds):
            for name in bench.measure_round():
                progress.update(task, description=f"round {number + 1}/{settings.rounds}: {name}")
        progress.update(task, description="the linear layers alone")
        lines = bench.lines()
        bench.close()
    report = {
        "settings": asdict(settings),
        "versions": {"phi3-serve": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "machine": asdict(bench.machine) | {"threads": torch.get_num_threads(), "compute_dtype": str(bench.dtype)},
        "lines": [asdict(line) for line in lines],
    }
    if as_json:
        print(json.dumps(report))
    else:
        Console(width=None if sys.stdout.isatty() else 150).print(_table(settings, bench, lines))


class EngineBench:
    """The contestants, and what they have shown so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        dtype = getattr(torch, settings.dtype)
        self.model = build(settings.shape, device=settings.device, dtype=dtype)
        self.dtype = compute_dtype(dtype, self.model.device)
        self.machine: Machine = measure_machine(self.model.device, self.dtype)
        self._ours = Ours(self.model, max_waiting=max(settings.concurrency))
        self._peers = [peer for name in settings.peers for peer in self._peer(name)]
        self._runs: dict[tuple[str, str, int], list[Run]] = {}
        self._first_request = 0

    def _peer(self, name: str) -> list[Contestant]:
        wanted = self.dtype if self.settings.peer_dtype == "auto" else getattr(torch, self.settings.peer_dtype)
        model: Any = self.model if wanted == self.model.dtype else None
        if model is None:
            model = build(self.settings.shape, device=self.settings.device, dtype=wanted)
        if name == "generate":
            return [Pipeline(model)]
        return [ContinuousBatching(model, self._requests("plain", 1)[0])]

    def _requests(self, kind: str, count: int) -> list[Any]:
        workload = Workload(kind=kind, prompt_tokens=self.settings.prompt_tokens, new_tokens=self.settings.new_tokens)
        config = self.model.config
        return [
            workload.request(number, vocab_size=config.vocab_size, context=config.max_position_embeddings)
            for number in range(count)
        ]

    def measure_round(self) -> Any:
        """Let every contestant answer every workload once; yields who is next."""
        for concurrency in self.settings.concurrency:
            for kind in self.settings.workloads:
                for contestant in (self._ours, *self._peers):
                    if kind not in ("plain", "beams") and contestant is not self._ours:
                        continue
                    if kind == "beams" and isinstance(contestant, ContinuousBatching):
                        continue  # it has none
                    yield f"{contestant.name}, {kind}, concurrency {concurrency}"
                    count = self.settings.requests or 2 * concurrency
                    if isinstance(contestant, Pipeline):  # more of the same would show no more
                        count = min(count, 2)
                    result = contestant.run(self._requests(kind, count), concurrency)
                    self._runs.setdefault((contestant.name, kind, concurrency), []).append(result)

    def lines(self) -> list[Line]:
        """The medians, with the limits of our own lines."""
        linear = LinearLayers(self.model)
        return [self._line(key, runs, linear) for key, runs in self._runs.items()]

    def _line(self, key: tuple[str, str, int], runs: list[Run], linear: LinearLayers) -> Line:
        rates = [result.tokens_per_s for result in runs]
        median = statistics.median(rates)
        steps = [step for result in runs for step in result.steps]
        seconds = sum(result.seconds for result in runs)
        first = [s for result in runs for s in result.first_token_s]
        return Line(
            *key,
            tokens_per_s=median,
            spread=(max(rates) - min(rates)) / median,
            step_ms=statistics.median(step.seconds for step in steps) * 1e3 if steps else None,
            first_token_ms=statistics.median(first) * 1e3 if first else None,
            of_linear_layers=linear.seconds_of(steps) / seconds if steps else None,
            of_roofline=roofline_seconds(steps, self.model.config, self.machine, self.dtype) / seconds
            if steps
            else None,
        )

    def close(self) -> None:
        """Stop everybody."""
        for contestant in (self._ours, *self._peers):
            contestant.close()


def _table(settings: Settings, bench: EngineBench, lines: list[Line]) -> Table:
    machine = bench.machine
    table = Table(
        title=f"{settings.shape}, {settings.dtype} weights computed in {str(bench.dtype).removeprefix('torch.')}, "
        f"{settings.prompt_tokens} + {settings.new_tokens} tokens, {torch.get_num_threads()} threads, "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s, {machine.flops_per_s / 1e9:.0f} GFLOP/s",
        title_justify="left",
    )
    for name in ("who", "workload", "at once", "tokens/s", "ours is", "spread", "step", "first token"):
        table.add_column(name, justify="left" if name in ("who", "workload") else "right")
    table.add_column("of linear", justify="right")
    table.add_column("of roofline", justify="right")
    ours = {(line.workload, line.concurrency): line.tokens_per_s for line in lines if line.name == Ours.name}
    for line in lines:
        is_ours = line.name == Ours.name
        against = ours.get(("plain", line.concurrency)) if is_ours else ours.get((line.workload, line.concurrency))
        ratio = (line.tokens_per_s / against if is_ours else against / line.tokens_per_s) if against else None
        table.add_row(
            line.name,
            line.workload,
            str(line.concurrency),
            f"{line.tokens_per_s:.1f}",
            ""
            if ratio is None or (is_ours and line.workload == "plain")
            else f"{ratio:.2f} x {'plain' if is_ours else 'it'}",
            f"{line.spread:.0%}",
            _optional(line.step_ms, "{:.0f} ms"),
            _optional(line.first_token_ms, "{:.0f} ms"),
            _optional(line.of_linear_layers, "{:.0%}"),
            _optional(line.of_roofline, "{:.0%}"),
        )
    return table


def _optional(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
