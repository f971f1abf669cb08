"""``phi3-serve bench engine``: the engine without Ray, its competitors, and the limits of the machine.

One run measures all competitors in alternation, so that a slow period of the machine affects all of them. Each has a
process of its own, which waits while others run. Prompts share no prefix, the prefix cache is off, and answers have a
fixed length.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from phi3_serve import __version__
from phi3_serve.bench import plots
from phi3_serve.bench.competitors import ContinuousBatching, Ours, Pipeline, Run, Vllm
from phi3_serve.bench.llamacpp import FILE_TYPES, LlamaCpp
from phi3_serve.bench.output import Output
from phi3_serve.bench.roofline import Limits, Machine, by_size, roofline_seconds, weight_dtype
from phi3_serve.bench.shapes import Model, config
from phi3_serve.bench.worker_process import WorkerProcess
from phi3_serve.bench.workload import ADAPTED_KINDS, Workload
from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.engine_core import StepStats
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

PEERS = GENERATE, BATCHING, VLLM, LLAMACPP = "generate", "batching", "vllm", "llamacpp"
LABELS = {GENERATE: "generate, one by one", BATCHING: "transformers batching", VLLM: "vLLM", LLAMACPP: "llama.cpp"}
OURS = "phi3-serve"
WARM_UP_REQUESTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure."""

    shape: str
    device: str
    dtype: str  # of the weights
    quantization: tuple[str, ...]
    peer_dtype: str
    concurrency: tuple[int, ...]
    workloads: tuple[str, ...]
    peers: tuple[str, ...]
    prompt_tokens: int
    new_tokens: int
    requests: int  # per run; 0: twice the concurrency
    rounds: int
    threads: int
    computed: str = "auto"  # the dtype to compute in; auto: that of the weights, if the processor does
    kv_cache_dtype: tuple[KvCacheDtype, ...] = ("auto",)
    adapters: int = 0  # that requests take in turns, in two more workloads; 0: neither
    rank: int = 16  # of the adapters


@dataclass(frozen=True, slots=True)
class Line:
    """One competitor at one concurrency: medians over the rounds."""

    name: str
    workload: str
    concurrency: int
    tokens_per_s: float
    spread: float  # (largest - smallest) / median
    first_token_ms: float | None = None
    step_ms: float | None = None
    prompt_tokens_per_s: float | None = None  # tokens of the steps that have prompts / their time
    decode_tokens_per_s: float | None = None  # tokens of the other steps / their time
    of_bandwidth: float | None = None  # bytes of weights / time of the steps that decode / measured bandwidth
    resident_mib: float | None = None  # of the process
    of_linear_layers: float | None = None  # time of the linear layers alone / time taken
    of_roofline: float | None = None
    grown_mib: float | None = None  # memory of the process, over the second half of the requests


def run(settings: Settings, output: Output) -> None:
    """Measure, with the progress on stderr, and show the figures."""
    with _progress() as progress:
        task = progress.add_task(f"making {settings.shape}", total=None)
        bench = EngineBench(settings)
        for name in bench.warm_up():
            progress.update(task, description=name)
        for number in range(settings.rounds):
            for name in bench.measure_round():
                progress.update(task, description=f"round {number + 1}/{settings.rounds}: {name}")
        lines = bench.lines()
    report = {
        "settings": asdict(settings),
        "versions": {"phi3-serve": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "machine": asdict(bench.machine) | {"compute_dtype": str(bench.dtype)},
        "lines": [asdict(line) for line in lines],
    }
    output.show(report, plots.engine, partial(_table, settings, bench, lines), width=190)


@dataclass(frozen=True, slots=True)
class _Form:
    """How one of ours rounds weights, and keys and values."""

    quantization: str
    kv_cache_dtype: KvCacheDtype

    @property
    def name(self) -> str:
        """For a line of the table."""
        rounded = [] if self.quantization == NO_QUANTIZATION else [self.quantization]
        rounded += [] if self.kv_cache_dtype == "auto" else [f"cache in {self.kv_cache_dtype}"]
        return ", ".join([OURS, *rounded])


class EngineBench:
    """The competitors, each in its process, and their results so far."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        computed = None if settings.computed == "auto" else getattr(torch, settings.computed)
        self._model = Model(settings.shape, settings.device, getattr(torch, settings.dtype), computed=computed)
        self.dtype = self._model.compute_dtype
        peer_dtype = self.dtype if settings.peer_dtype == "auto" else getattr(torch, settings.peer_dtype)
        self._config = config(settings.shape)
        self._forms = {
            form.name: form
            for form in itertools.starmap(_Form, itertools.product(settings.quantization, settings.kv_cache_dtype))
        }
        self._limits: dict[str, WorkerProcess] = {}
        self._competitors: dict[str, WorkerProcess] = {}
        for name, form in self._forms.items():
            ours = replace(self._model, quantization=form.quantization)
            self._limits[name] = self._in_process(partial(Limits, ours))
            self._competitors[name] = self._in_process(
                partial(
                    Ours,
                    ours,
                    max_waiting=max(settings.concurrency),
                    max_blocks=self._max_blocks(),
                    kv_cache_dtype=form.kv_cache_dtype,
                    num_adapters=settings.adapters,
                    rank=settings.rank,
                )
            )
        self.machine: Machine = next(iter(self._limits.values())).call("machine")
        self.compared_with: dict[str, str] = {}  # for each peer, the one of ours
        for name in settings.peers:
            for label, ours_is, make in self._peer(name, peer_dtype):
                self.compared_with[label] = ours_is
                self._competitors[label] = self._in_process(make)
        self._runs: dict[tuple[str, str, int], list[Run]] = {}
        # of each of ours, in each round the seconds of the linear layers alone, by tokens
        self._linear: dict[str, list[dict[int, float]]] = {name: [] for name in self._limits}

    def _peer(self, name: str, dtype: torch.dtype) -> Iterator[tuple[str, str, Callable[[], Any]]]:
        """The competitors of ``name``, each with its label, the one of ours that it is compared with, and its maker."""
        s = self.settings
        theirs = Model(s.shape, s.device, dtype)
        if name == LLAMACPP:
            of_one = self._most_tokens()
            for quantization in s.quantization:
                make = partial(LlamaCpp, sequences=max(*s.concurrency, WARM_UP_REQUESTS), sequence_tokens=of_one)
                rounded = replace(theirs, quantization=quantization)
                ours = _Form(quantization, s.kv_cache_dtype[0]).name
                yield f"{LABELS[name]}, {FILE_TYPES[quantization]}", ours, partial(make, rounded)
            return
        makers: dict[str, Callable[[], Any]] = {
            GENERATE: partial(Pipeline, theirs),
            BATCHING: partial(ContinuousBatching, theirs, *self._requests("plain", 1)),
            VLLM: partial(Vllm, theirs, *self._requests("plain", 1)),
        }
        yield f"{LABELS[name]}, {str(dtype).removeprefix('torch.')}", next(iter(self._forms)), makers[name]

    def warm_up(self) -> Iterator[str]:
        """Let every competitor answer a few short requests that do not count; yields the name of the next one."""
        for name, competitor in self._competitors.items():
            yield f"{name}, warming up"
            competitor.call("run", self._requests("plain", WARM_UP_REQUESTS, new_tokens=4), WARM_UP_REQUESTS)

    def _in_process(self, make: Callable[[], Any]) -> WorkerProcess:
        return WorkerProcess(make, num_threads=self.settings.threads)

    def _max_blocks(self) -> int:
        """More blocks than all requests in flight need, and few enough that competitors on the same GPU have memory."""
        s = self.settings
        of_one = self._most_tokens() // BLOCK_SIZE + 2
        rows = 4 if "beams" in s.workloads else 1
        return min(max(s.concurrency), MAX_ROWS["cuda" if s.device == "cuda" else "cpu"]) * rows * of_one * 4

    def _most_tokens(self) -> int:
        """Of one request, prompt and answer."""
        return self.settings.prompt_tokens * 9 // 8 + self.settings.new_tokens

    def _requests(self, kind: str, count: int, new_tokens: int = 0) -> list[EngineRequest]:
        workload = Workload(
            kind=kind,
            prompt_tokens=self.settings.prompt_tokens,
            new_tokens=new_tokens or self.settings.new_tokens,
            num_adapters=self.settings.adapters,
        )
        vocab_size, context = self._config.vocab_size, self._config.max_position_embeddings
        return [workload.request(number, vocab_size=vocab_size, context=context) for number in range(count)]

    def measure_round(self) -> Iterator[str]:
        """Let every competitor answer every workload once; yields the name of the next one."""
        for concurrency in self.settings.concurrency:
            for kind in self.settings.workloads:
                for name, competitor in self._competitors.items():
                    if not _can_answer(name, kind):
                        continue
                    yield f"{name}, {kind}, concurrency {concurrency}"
                    count = self.settings.requests or 2 * concurrency
                    if name.startswith(LABELS[GENERATE]):  # one by one, more requests give the same rate
                        count = min(count, 2)
                    result = competitor.call("run", self._requests(kind, count), concurrency)
                    self._runs.setdefault((name, kind, concurrency), []).append(result)
        yield "the linear layers alone"
        sizes = sorted({size for runs in self._runs.values() for size in by_size(runs[-1].steps)})
        for name, limits in self._limits.items():
            self._linear[name].append(limits.call("linear_seconds", sizes))

    def lines(self) -> list[Line]:
        """The medians, and for our own lines the limits of the machine. Ends the competitors."""
        for competitor in (*self._competitors.values(), *self._limits.values()):
            competitor.close()
        return [self._line(key, runs) for key, runs in self._runs.items()]

    def _line(self, key: tuple[str, str, int], runs: list[Run]) -> Line:
        rates = [result.tokens_per_s for result in runs]
        median = statistics.median(rates)
        steps = [step for result in runs for step in result.steps]
        seconds = sum(result.seconds for result in runs)
        first = [s for result in runs for s in result.first_token_s]
        line = Line(
            *key,
            tokens_per_s=median,
            spread=(max(rates) - min(rates)) / median,
            first_token_ms=statistics.median(first) * 1e3 if first else None,
        )
        if not steps:
            return line
        line = replace(
            line,
            step_ms=statistics.median(step.seconds for step in steps) * 1e3,
            resident_mib=max(result.resident_bytes for result in runs) / 2**20,
        )
        if line.workload in ("plain", *ADAPTED_KINDS):
            line = self._with_phases(line, runs)
        if line.name not in self._forms:
            return line
        form = self._forms[line.name]
        return replace(
            line,
            of_linear_layers=statistics.median(
                sum(count * linear[size] for size, count in by_size(result.steps).items()) / result.seconds
                for result, linear in zip(runs, self._linear[line.name], strict=True)
            ),
            of_roofline=roofline_seconds(
                steps,
                self._config,
                self.machine,
                self.dtype,
                form.quantization,
                form.kv_cache_dtype,
                weights=weight_dtype(self._model),
            )
            / seconds,
            grown_mib=max(result.grown_bytes for result in runs) / 2**20,
        )

    def _with_phases(self, line: Line, runs: list[Run]) -> Line:
        """``line`` with the rates of prompts and of decoding, each the median of the rounds that have such steps."""
        prompts = [_tokens_per_s(steps) for result in runs if (steps := result.prompt_steps)]
        decoding = [_tokens_per_s(steps) for result in runs if (steps := result.decode_steps)]
        read = [
            result.read_bytes * len(steps) / sum(step.seconds for step in steps)
            for result in runs
            if (steps := result.decode_steps)
        ]
        return replace(
            line,
            prompt_tokens_per_s=statistics.median(prompts) if prompts else None,
            decode_tokens_per_s=statistics.median(decoding) if decoding else None,
            of_bandwidth=statistics.median(read) / self.machine.bytes_per_s if read else None,
        )


def _tokens_per_s(steps: list[StepStats]) -> float:
    return sum(step.num_tokens for step in steps) / sum(step.seconds for step in steps)


def _can_answer(name: str, kind: str) -> bool:
    """Whether a competitor has the workload: ``generate`` has beams, and only phi3-serve has the others in a batch."""
    return name.startswith(OURS) or kind == "plain" or (kind == "beams" and name.startswith(LABELS[GENERATE]))


def _table(settings: Settings, bench: EngineBench, lines: list[Line]) -> Table:
    machine = bench.machine
    table = Table(
        title=f"{settings.shape}, {settings.dtype} weights computed in {str(bench.dtype).removeprefix('torch.')}, "
        f"{settings.prompt_tokens} + {settings.new_tokens} tokens, {machine.threads} threads, "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s, {machine.flops_per_s / 1e9:.0f} GFLOP/s",
        title_justify="left",
    )
    for name in (
        "who",
        "workload",
        "at once",
        "tokens/s",
        "ours is",
        "spread",
        "step",
        "first token",
        "prompt",
        "decode",
    ):
        table.add_column(name, justify="left" if name in ("who", "workload") else "right")
    for name in ("of bandwidth", "of linear", "of roofline", "memory", "growth"):
        table.add_column(name, justify="right")
    ours = {
        (line.name, line.workload, line.concurrency): line.tokens_per_s for line in lines if line.name.startswith(OURS)
    }
    for line in lines:
        is_ours = line.name.startswith(OURS)
        compared = (line.name, "plain") if is_ours else (bench.compared_with[line.name], line.workload)
        against = ours.get((*compared, line.concurrency))
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
            _optional(line.prompt_tokens_per_s, "{:.1f}/s"),
            _optional(line.decode_tokens_per_s, "{:.1f}/s"),
            _optional(line.of_bandwidth, "{:.0%}"),
            _optional(line.of_linear_layers, "{:.0%}"),
            _optional(line.of_roofline, "{:.0%}"),
            _optional(line.resident_mib, "{:.0f} MiB"),
            _optional(line.grown_mib, "{:+.0f} MiB"),
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
