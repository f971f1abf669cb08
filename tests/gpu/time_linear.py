"""Times the linear layers of mini and medium on a GPU: cuBLAS, and Triton kernels for few rows, in fewer bits, too."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from phi3_serve.bench.roofline import linear_sizes
from phi3_serve.bench.shapes import config
from phi3_serve.engine.kernels.contract import Bits
from phi3_serve.engine.kernels.quantize import quantize
from phi3_serve.engine.kernels.triton_linear import LinearConfig, multiply_row
from phi3_serve.engine.kernels.triton_quantized import QuantizedConfig, TritonWeight

ROWS = (1,)
TRITON_ROWS = ROWS
CONFIGS = [
    LinearConfig(n, k, warps, stages)
    for n, k, warps, stages in [
        (8, 512, 4, 3), (8, 1024, 8, 3), (4, 1024, 4, 3), (2, 1024, 4, 3), (16, 512, 8, 3),
        (16, 256, 4, 4), (16, 128, 4, 6), (32, 128, 4, 5), (32, 256, 4, 3),
    ]
]  # fmt: skip


QUANTIZED_ROWS = (1, 2, 8, 32, 64, 128)
QUANTIZED_CONFIGS = [
    QuantizedConfig(n, num_bytes, warps, stages)
    for n, num_bytes, warps, stages in [
        (8, 256, 4, 4), (8, 512, 4, 3), (4, 512, 4, 4), (16, 256, 4, 4),
        (16, 128, 2, 4), (32, 128, 4, 3), (32, 128, 4, 4), (64, 128, 4, 3), (128, 64, 8, 4),
    ]
]  # fmt: skip


def graph_seconds(run: Callable[[Any], object], weights: Sequence[Any]) -> float:
    """Seconds of one call, in a graph over all ``weights``, which together exceed the caches."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            run(weight)
    times = []
    for _ in range(4):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(weights))
    return float(min(times[1:]))


def quantized(outputs: int, inputs: int, bits: Bits) -> Iterator[dict[str, Any]]:
    """Microseconds of a layer in ``bits`` bits, by config, and of dequantising it and multiplying by the result."""
    one = TritonWeight(quantize(torch.randn(outputs, inputs), bits).to(torch.device("cuda")))
    copies = max(2, min(32, (400 << 20) // one.num_bytes + 1))
    weights = [TritonWeight(one.unpacked()) for _ in range(copies)]
    for rows in QUANTIZED_ROWS:
        x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
        multiply = TritonWeight.multiply_row if rows == 1 else TritonWeight.multiply_rows
        found = {"dequantised": graph_seconds(partial(_multiply_dequantized, x=x), weights)}
        for sizes in QUANTIZED_CONFIGS:
            name = f"n{sizes.block_n} b{sizes.block_bytes} w{sizes.num_warps} s{sizes.num_stages}"
            try:
                found[name] = graph_seconds(partial(multiply, x=x, config=sizes), weights)
            except Exception as error:
                print(name, type(error).__name__, str(error)[:200])
        best = sorted((seconds, name) for name, seconds in found.items())[:3]
        shown = "  ".join(f"{name} {seconds * 1e6:.1f} us" for seconds, name in best)
        print(f"int{bits} {outputs}x{inputs} rows {rows}: {shown}", flush=True)
        yield {"bits": bits, "outputs": outputs, "inputs": inputs, "rows": rows, "seconds": found}


def _multiply_dequantized(weight: TritonWeight, x: torch.Tensor) -> torch.Tensor:
    return linear(x, weight.dequantized(x.dtype))


def main(path: str) -> None:
    lines = []
    for shape in ("mini", "medium"):
        for outputs, inputs in dict.fromkeys(linear_sizes(config(shape))):
            copies = max(2, min(32, (400 << 20) // (outputs * inputs * 2) + 1))
            weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
            for rows in ROWS:
                x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
                found = {"cuBLAS": graph_seconds(partial(linear, x), weights)}
                for one in CONFIGS if rows in TRITON_ROWS else ():
                    if (
                        inputs % one.block_k
                        or (rows > 1 and (one.block_n < 16 or one.block_k > 256))
                        or (rows == 1 and (one.block_n > 16 or one.block_k < 512))
                    ):
                        continue
                    name = f"n{one.block_n} k{one.block_k} w{one.num_warps} s{one.num_stages}"
                    try:
                        torch.testing.assert_close(
                            multiply_row(x, weights[0], one), linear(x, weights[0]), rtol=3e-2, atol=0.5
                        )
                        found[name] = graph_seconds(partial(multiply_row, x, config=one), weights)
                    except Exception as error:
                        print(name, type(error).__name__, str(error)[:200])
                rate = {name: outputs * inputs * 2 / seconds / 1e9 for name, seconds in found.items()}
                best = sorted(((r, n) for n, r in rate.items() if n != "cuBLAS"), reverse=True)[:3]
                print(
                    f"{shape} {outputs}x{inputs} rows {rows}: cuBLAS {rate['cuBLAS']:.0f} GB/s ({found['cuBLAS'] * 1e6:.1f} us)  "
                    + "  ".join(f"{n} {r:.0f}" for r, n in best),
                    flush=True,
                )
                lines.append({"shape": shape, "outputs": outputs, "inputs": inputs, "rows": rows, "gb_per_s": rate})
            del weights
            lines += [{"shape": shape} | line for bits in (8, 4) for line in quantized(outputs, inputs, bits)]
    with open(path, "w") as file:
        json.dump(lines, file)


if __name__ == "__main__":
    main(sys.argv[1])
