"""The engine beside transformers' generate and continuous batching on the same GPU, as ``phi3-serve bench engine`` does."""

from dataclasses import asdict
from itertools import chain
from typing import Any

from phi3_serve.bench import engine
from tests.gpu.report import say, write

# name: (workloads, requests at once, peers)
RUNS: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "kaito": (("plain", "sampled", "exotic"), 64, ("generate",)),
    "beams": (("beams",), 8, ("generate",)),
    "batching": (("plain",), 64, ("batching",)),
}


def main(shape: str, name: str, device: str = "cuda", dtype: str = "bfloat16", new_tokens: int = 128) -> dict[str, Any]:
    """Run one comparison."""
    workloads, at_once, peers = RUNS[name]
    settings = engine.Settings(
        shape=shape,
        device=device,
        dtype=dtype,
        quantization=("none",),
        peer_dtype="auto",
        concurrency=(at_once,),
        workloads=workloads,
        peers=peers,
        prompt_tokens=32,
        new_tokens=new_tokens,
        requests=at_once,
        rounds=1,
        threads=0,
    )
    bench = engine.EngineBench(settings)
    for doing in chain(bench.warm_up(), bench.measure_round()):
        write({"lines": _rates(bench)})
        say(doing)
    write({"lines": _rates(bench)})
    lines = [asdict(line) for line in bench.lines()]
    for line in lines:
        say(f"{line['name']}, {line['workload']}, {at_once} at once: {line['tokens_per_s']:,.0f} tokens/s")
    return {"settings": asdict(settings), "machine": asdict(bench.machine), "lines": lines}


def _rates(bench: engine.EngineBench) -> list[dict[str, Any]]:
    """What is measured so far."""
    return [
        {"name": name, "workload": workload, "tokens_per_s": runs[-1].tokens_per_s}
        for (name, workload, _), runs in bench._runs.items()
    ]
