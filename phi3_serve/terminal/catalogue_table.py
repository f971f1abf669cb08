"""``phi3-serve models``: what each variant needs, and with which settings this machine can serve it."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from phi3_serve import catalogue
from phi3_serve.catalogue import NO_QUANTIZATION, Variant
from phi3_serve.config.model import ModelConfig
from phi3_serve.engine.precision import dtype_to_load
from phi3_serve.observability.progress import human_bytes
from phi3_serve.serving.placement import place

# What an operator can write beside the name of a model, from the least change to the greatest.
_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    *({"quantization": quantization} for quantization in catalogue.EXACT_QUANTIZATIONS[1:]),
    {"device": "cpu"},
    *({"device": "cpu", "quantization": quantization} for quantization in catalogue.EXACT_QUANTIZATIONS[1:]),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first GPU of this machine."""

    free_bytes: int
    capability: tuple[int, int]  # compute capability


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory that a server started now would find."""

    available_bytes: int  # of main memory
    gpu: Gpu | None
    keeps_halves: bool = True  # whether the processor multiplies by weights in 16 bits, see kernels/half_panels.py

    @property
    def in_words(self) -> str:
        """One line."""
        gpu = "no GPU" if self.gpu is None else f"a GPU with {human_bytes(self.gpu.free_bytes)}"
        return f"{human_bytes(self.available_bytes)} of memory, {gpu}"


def this_machine() -> Machine:
    """What is free here and now."""
    import torch  # two seconds

    from phi3_serve.engine.kernels.half_panels import multiplies_halves

    gpu = None
    if torch.cuda.is_available():
        gpu = Gpu(torch.cuda.mem_get_info(0)[0], torch.cuda.get_device_capability(0))
    return Machine(psutil.virtual_memory().available, gpu, multiplies_halves())


@dataclass(frozen=True, slots=True)
class Fit:
    """A variant with settings under which this machine can serve it; None: it cannot."""

    variant: Variant
    settings: Mapping[str, Any] | None
    device: str  # cpu or cuda; that of the settings, or the one that the server would take by itself
    dtype: str
    memory_needed: int  # bytes

    @property
    def in_words(self) -> str:
        """Whether it fits, and with which settings in the config."""
        if self.settings is None:
            return "no"
        settings = ", ".join(f"{name}: {value}" for name, value in self.settings.items())
        return f"with {settings}" if settings else "yes"


def fit(variant: Variant, machine: Machine) -> Fit:
    """The first of the settings with which ``variant`` fits, as the server places and loads it."""
    first = None
    for settings in _SETTINGS:
        found, fits = _with(variant, settings, machine)
        if fits:
            return found
        first = first or found
    assert first is not None  # noqa: S101 - there are settings
    return Fit(variant, None, first.device, first.dtype, first.memory_needed)


def _with(variant: Variant, settings: Mapping[str, Any], machine: Machine) -> tuple[Fit, bool]:
    device = place(ModelConfig(name=variant.name, **settings), cluster_has_gpu=machine.gpu is not None).device
    gpu = machine.gpu if device == "cuda" else None
    dtype = "bfloat16"  # of the checkpoints; they are for a GPU
    if device == "cpu" or gpu is not None:
        taken = dtype_to_load("auto", stored=dtype, capability=None if gpu is None else gpu.capability)
        dtype = dtype if taken == "auto" else taken
    weights = "bfloat16" if device == "cpu" and machine.keeps_halves else dtype
    needed = variant.memory_needed(dtype, settings.get("quantization", NO_QUANTIZATION), weights=weights)
    found = Fit(variant, settings, device, dtype, needed)
    if device == "cpu":
        return found, needed <= machine.available_bytes
    return found, gpu is not None and needed <= gpu.free_bytes


def print_catalogue(machine: Machine, *, as_json: bool) -> None:
    """Print every variant."""
    fits = [fit(variant, machine) for variant in catalogue.VARIANTS]
    if as_json:
        gpu_bytes = None if machine.gpu is None else machine.gpu.free_bytes
        found = {
            "memory_bytes": machine.available_bytes,
            "gpu_memory_bytes": gpu_bytes,
            "models": list(map(_row, fits)),
        }
        print(json.dumps(found, indent=2))
        return
    table = _table(fits)
    table.title = f"This machine has {machine.in_words}"
    console = Console(highlight=False)
    needed = Measurement.get(console, console.options.update(max_width=1000), table)
    # A terminal shows a table that is wider than itself in broken lines, but whole. A pipe has no width.
    console.width = max(console.width, needed.minimum) if sys.stdout.isatty() else needed.maximum
    console.print(table)


def _row(found: Fit) -> dict[str, object]:
    variant = found.variant
    return {
        "name": variant.name,
        "context_length": variant.context_length,
        "parameters": variant.num_parameters,
        "kv_bytes_per_token": variant.kv_bytes_per_token(found.dtype),
        "kv_bytes_per_token_in_int8": variant.kv_bytes_per_token("int8"),
        "weight_format": catalogue.STORED_AS,
        "device": found.device,
        "dtype": found.dtype,
        "memory_needed_bytes": found.memory_needed,
        "sliding_window": variant.sliding_window,
        "rope": variant.rope,
        "source": "embedded" if variant.revision is None else variant.source,
        "revision": variant.revision,
        "fits": found.settings == {},
        "fits_with": found.settings,
    }


def _table(fits: list[Fit]) -> Table:
    table = Table(title_justify="left")
    names = max(len(variant.name) for variant in catalogue.VARIANTS)
    table.add_column("Model", no_wrap=True, min_width=names)
    for heading in ("Context", "Parameters", "KV/token", "in int8", "Memory", "Window"):
        table.add_column(heading, justify="right", overflow="fold")
    for heading in ("RoPE", "Stored as", "Revision", "Fits"):
        table.add_column(heading, overflow="fold")
    for row in map(_cells, fits):
        table.add_row(*row)
    return table


def _cells(found: Fit) -> Iterator[str]:
    variant = found.variant
    yield variant.name
    yield f"{variant.context_length:,}"
    yield _human_count(variant.num_parameters)
    yield human_bytes(variant.kv_bytes_per_token(found.dtype))
    yield human_bytes(variant.kv_bytes_per_token("int8"))
    yield human_bytes(found.memory_needed)
    yield "all" if variant.sliding_window is None else f"{variant.sliding_window:,}"
    yield variant.rope
    yield catalogue.STORED_AS
    yield variant.revision[:7] if variant.revision else "embedded"
    yield found.in_words


def _human_count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
