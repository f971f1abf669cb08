"""The engine beside transformers' generate and continuous batching on the same GPU: ``phi3-serve bench engine``."""

import contextlib
import io
import json
import sys

from phi3_serve.bench import engine
from phi3_serve.bench.output import Output
from tests.gpu.report import say, write

# name: (workloads, requests at once, peers)
RUNS = {
    "kaito": (("plain", "sampled", "exotic"), 64, ("generate",)),
    "beams": (("beams",), 8, ("generate",)),
    "batching": (("plain",), 64, ("batching",)),
}


def main(shape: str, name: str) -> None:
    """Run one comparison."""
    workloads, at_once, peers = RUNS[name]
    settings = engine.Settings(
        shape=shape,
        device="cuda",
        dtype="bfloat16",
        quantization=("none",),
        peer_dtype="auto",
        concurrency=(at_once,),
        workloads=workloads,
        peers=peers,
        prompt_tokens=32,
        new_tokens=128,
        requests=at_once,
        rounds=1,
        threads=0,
    )
    with contextlib.redirect_stdout(io.StringIO()) as out:
        engine.run(settings, Output(as_json=True))
    report = json.loads(out.getvalue())
    for line in report["lines"]:
        say(f"{line['name']}, {line['workload']}, {at_once} at once: {line['tokens_per_s']:,.0f} tokens/s")
    write(report)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
