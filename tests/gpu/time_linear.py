"""Times the linear layers of mini and medium on a GPU: cuBLAS, and Triton kernels for few rows."""

import json
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from phi3_serve.bench.roofline import linear_sizes
from phi3_serve.bench.shapes import config
from phi3_serve.engine.kernels.triton_linear import LinearConfig, multiply_row

ROWS = (1,)
TRITON_ROWS = ROWS
CONFIGS = [
    LinearConfig(n, k, warps, stages)
    for n, k, warps, stages in [
        (8, 512, 4, 3), (8, 1024, 8, 3), (4, 1024, 4, 3), (2, 1024, 4, 3), (16, 512, 8, 3),
        (16, 256, 4, 4), (16, 128, 4, 6), (32, 128, 4, 5), (32, 256, 4, 3),
    ]
]  # fmt: skip


def graph_seconds(run: Callable[[Tensor], object], weights: list[Tensor]) -> float:
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
    with open(path, "w") as file:
        json.dump(lines, file)


if __name__ == "__main__":
    main(sys.argv[1])
