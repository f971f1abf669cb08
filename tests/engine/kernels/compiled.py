"""Compiles what a GPU would run, without one: ``python -m tests.engine.kernels.compiled 75 90``.

``--half`` leaves out float32, in which only tests compute and which takes half of the time.

The functions that launch kernels get tensors of a CPU, and each launch is compiled for a GPU in place of being run. So sizes,
dtypes, alignments and constants are those of real launches, at the shapes of mini and of medium. Triton's interpreter runs
what its compiler refuses, so this runs in a process without the interpreter. It prints a line of JSON for each kernel: the
shared memory of a program in bytes, and the seconds of the compiler; and fails if a launch of a running server would compile
anything that no launch at load has compiled.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from phi3_serve.bench.roofline import linear_sizes
from phi3_serve.bench.shapes import config
from phi3_serve.engine.adapters import places
from phi3_serve.engine.adapters.pages import PageLayout
from phi3_serve.engine.kernels import triton_fp8, triton_quantized, triton_sampling
from phi3_serve.engine.kernels.contract import (
    BLOCKED_FORMS,
    GROUP,
    MAX_SHORT_QUERIES,
    ROWS_PER_TILE,
    AdaptedTiles,
    BlockedWeight,
    PagedQueries,
    QuantizedWeight,
)
from phi3_serve.engine.kernels.cuda import CudaKernels
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.triton_linear import multiply_row, row_config
from phi3_serve.engine.kernels.triton_low_rank import add_low_rank
from phi3_serve.engine.kernels.triton_quantized import TritonWeight
from phi3_serve.engine.model.device_runner import graph_rows
from phi3_serve.engine.precision import FP8_SINCE, has_bfloat16

VOCAB = 32_064
BUDGET = 2048
# Rows of steps that no graph has, and numbers of tiles of prompts
SERVED_ROWS = (3, 5, 7, 17, 31, 33, 47, 63, 65, 100, 113, 127)
SERVED_TILES = (1, 2, 3, 5, 7, 15, 16)


@dataclass(frozen=True)
class Gpu:
    """What a launch depends on."""

    multiprocessors: int
    shared_memory: int  # bytes of a program at most


GPUS = {
    75: Gpu(40, 64 << 10),  # T4
    80: Gpu(108, 163 << 10),  # A100
    86: Gpu(80, 99 << 10),  # A10G
    89: Gpu(58, 99 << 10),  # L4
    90: Gpu(132, 227 << 10),  # H100
}
"""By the compute capability without the point."""


class Compiler:
    """In place of a driver: the launches of each GPU are compiled and not run."""

    def __init__(self) -> None:
        self.capability = 0
        self.about = ""  # what is launched
        self.found: dict[int, dict[str, Any]] = {}  # by the address of a compiled kernel
        self.kept: list[Any] = []

    def get_current_device(self) -> int:
        """Kernels are kept for each device, so each capability is one."""
        return self.capability

    def get_current_stream(self, _: int) -> int:
        """None is used."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return GPUTarget("cuda", self.capability, 32)

    def install(self) -> None:
        """From now on launches come here."""
        triton.runtime.driver.set_active(self)
        run = JITFunction.run

        def compile_only(kernel: Any, *args: Any, warmup: bool, **kwargs: Any) -> Any:
            began = time.process_time()
            compiled = run(kernel, *args, warmup=True, **kwargs)
            if id(compiled) not in self.found:
                self.kept.append(compiled)
                self.found[id(compiled)] = {
                    "gpu": self.capability,
                    "kernel": kernel.fn.__name__,
                    "of": self.about,
                    "shared_memory": compiled.metadata.shared,
                    "seconds": round(time.process_time() - began, 2),
                }
                assert compiled.asm["cubin"]
            return compiled

        JITFunction.run = compile_only


def launch_layers(kernels: CudaKernels, model: Any, dtype: torch.dtype, rows: int) -> None:
    """The kernels between linear layers besides attention."""
    hidden, delta = (torch.zeros(rows, model.hidden_size, dtype=dtype) for _ in range(2))
    kernels.add_rms_norm(hidden, delta, torch.zeros(model.hidden_size, dtype=dtype), 1e-5)
    kernels.silu_product(torch.zeros(rows, 2 * model.intermediate_size, dtype=dtype))


def launch_cache(
    kernels: CudaKernels, model: Any, dtype: torch.dtype, stored: torch.dtype, short: int, long: int, window: int | None
) -> None:
    """What reads and writes the cache, with so many short and long tiles."""
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    dim, rows = model.hidden_size // heads, 3
    cache = KvCache(
        torch.empty(2 * kv_heads, 64, dim, dtype=stored),
        None if stored == dtype else torch.empty(2 * kv_heads, 64, dtype=torch.float32),
    )
    qkv = torch.empty(rows, heads + 2 * kv_heads, dim, dtype=dtype)
    rotation = (torch.empty(rows, 1, dim, dtype=dtype), torch.empty(rows, 1, dim, dtype=dtype))
    kernels.rotate_and_store(qkv, rotation, integers(rows), cache)
    queries = PagedQueries(integers(1, 4), integers(9), integers(short, 2), integers(long, 2))
    kernels.attend(qkv, cache, queries, dim**-0.5, window)


def integers(*size: int) -> Tensor:
    """As in a step's buffer."""
    return torch.zeros(size, dtype=torch.int32)


def launch_adapters(layout: PageLayout, model: Any, dtype: torch.dtype, tiles: int) -> None:
    """The products of adapters, at each kind of linear layer."""
    pages = torch.empty(2, layout.num_elements, dtype=dtype)
    for place in (*range(len(places.LAYERS)), places.head(model)):
        change = layout.of_place(pages, place)
        x, output = (torch.empty(3, matrix.shape[2], dtype=dtype) for matrix in (change.a, change.b))
        for rows_per_tile in ROWS_PER_TILE:
            adapted = AdaptedTiles(
                integers(tiles + 4), integers(1), integers(tiles, 4), integers(4, 2), rows_per_tile, 1
            )
            add_low_rank(x, output, change, adapted)


def quantized_weights(outputs: int, inputs: int) -> Iterator[tuple[str, TritonWeight]]:
    """A weight of each form."""
    values = torch.zeros(outputs, inputs, dtype=torch.int8)
    yield "int8", TritonWeight(QuantizedWeight(8, values, torch.zeros(outputs, 1)))
    of_groups = torch.zeros(outputs, inputs // GROUP, dtype=torch.bfloat16)
    yield "int4", TritonWeight(QuantizedWeight(4, values, of_groups))
    for bits, forms in BLOCKED_FORMS.items():
        for group, has_minima in forms:
            of_blocks, steps = torch.zeros(outputs, inputs // 256).half(), values[:, : inputs // group]
            weight = BlockedWeight(bits, values, of_blocks, steps, *((of_blocks, steps) if has_minima else ()))
            yield f"int{bits} in groups of {group}", TritonWeight(weight)


def multiply(weight: TritonWeight, inputs: int, dtype: torch.dtype, rows: Sequence[int]) -> None:
    """Products with so many rows, as ``multiply`` launches them; torch does the rest of more rows."""
    for count in rows:
        x = torch.empty(count, inputs, dtype=dtype)
        if count > triton_quantized.MAX_FEW_ROWS:
            weight.dequantized(dtype)
        else:
            weight.multiply(x)


def launch_all(compiler: Compiler, capability: int, shape: str, window: int | None, *, is_half: bool) -> None:
    """What a server launches: at load, and then with other numbers of rows, which must compile nothing more."""
    compiler.capability, gpu = capability, GPUS[capability]
    properties = SimpleNamespace(multi_processor_count=gpu.multiprocessors, major=capability // 10)
    has_fp8, has_bf16 = divmod(capability, 10) >= FP8_SINCE, has_bfloat16(divmod(capability, 10))
    model: Any = config(shape)
    for dtype in (torch.bfloat16 if has_bf16 else torch.float16, *(() if is_half else (torch.float32,))):
        with patch.object(torch.cuda, "get_device_properties", lambda _: properties):
            kernels = CudaKernels(
                num_heads=model.num_attention_heads,
                num_kv_heads=model.num_key_value_heads,
                dtype=dtype,
                device=torch.device("cuda"),
            )
        layout, tile = PageLayout(model, dtype), kernels.queries_per_tile[1]
        at_load, longest = graph_rows(256), -(-BUDGET // tile)
        for is_served in (False, True):
            before = len(compiler.found)
            rows = SERVED_ROWS if is_served else at_load
            # At load a short prompt and the longest one are run.
            tiles = SERVED_TILES if is_served else (-(-(MAX_SHORT_QUERIES + 1) // tile), longest)
            for stored in (dtype, torch.int8, *([torch.float8_e4m3fn] if has_fp8 else [])):
                compiler.about = f"{shape}, {dtype}, cache in {stored}"
                for count in rows:
                    launch_cache(kernels, model, dtype, stored, count, 0, window)
                for count in tiles:
                    launch_cache(kernels, model, dtype, stored, 0, count, window)
            compiler.about = f"{shape}, {dtype}"
            for count in rows:
                launch_layers(kernels, model, dtype, count)
            for count in (5, 40) if is_served else (1, 300):
                launch_adapters(layout, model, dtype, count)
            triton_sampling.choose_tokens(
                torch.empty(len(rows), VOCAB, dtype=dtype),
                torch.empty(len(rows), 10),
                integers(len(rows), 6),
                (integers(len(rows)), torch.empty(len(rows))),
                integers(5, VOCAB),
                torch.zeros(2, dtype=torch.int64),
                integers(len(rows)),
            )
            if dtype == torch.float32:
                continue
            for outputs, inputs in dict.fromkeys(linear_sizes(model)):
                if (one := row_config(outputs, inputs)) is not None:
                    multiply_row(torch.empty(1, inputs, dtype=dtype), torch.empty(outputs, inputs, dtype=dtype), one)
            for form, weight in quantized_weights(256, model.hidden_size):
                compiler.about = f"{shape}, {dtype}, weights in {form}"
                multiply(weight, model.hidden_size, dtype, rows if is_served else [1, *rows, BUDGET])
            if has_fp8:
                for count in rows:
                    triton_fp8.round_rows(torch.empty(count, model.hidden_size, dtype=dtype))
            if is_served:
                late = list(compiler.found.values())[before:]
                assert not late, f"a running server compiles {late}"


def main(capabilities: Sequence[int], *, is_half: bool) -> None:
    """Compile for each of ``capabilities``. ``is_half``: without float32."""
    torch.set_num_threads(1)
    compiler = Compiler()
    compiler.install()
    for capability in capabilities:
        launch_all(compiler, capability, "mini", 2047, is_half=is_half)
        launch_all(compiler, capability, "medium", None, is_half=is_half)
    for line in compiler.found.values():
        print(json.dumps(line))
    for line in compiler.found.values():
        most = GPUS[line["gpu"]].shared_memory
        assert line["shared_memory"] <= most, f"{line} takes more than {most} bytes"


if __name__ == "__main__":
    arguments = set(sys.argv[1:])
    main(
        [int(capability) for capability in sorted(arguments - {"--half"})] or list(GPUS), is_half="--half" in arguments
    )
