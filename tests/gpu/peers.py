"""The engine beside transformers' generate and continuous batching on the same GPU: ``phi3-serve bench engine``."""

import contextlib
import io
import json
import sys

from phi3_serve.bench import engine
from tests.gpu.report import say, write

AT_ONCE = 64

if __name__ == "__main__":
    settings = engine.Settings(
        shape=sys.argv[1],
        device="cuda",
        dtype="bfloat16",
        peer_dtype="auto",
        concurrency=(AT_ONCE,) if sys.argv[2] == "64" else (8,),
        workloads=("plain", "sampled", "exotic") if sys.argv[2] == "64" else ("beams",),
        peers=("generate", "batching") if sys.argv[2] == "64" else ("generate",),
        prompt_tokens=32,
        new_tokens=128,
        requests=0,
        rounds=1,
        threads=0,
    )
    with contextlib.redirect_stdout(io.StringIO()) as out:
        engine.run(settings, as_json=True)
    report = json.loads(out.getvalue())
    for line in report["lines"]:
        of_roofline = f", {line['of_roofline']:.0%} of the limit" if line["of_roofline"] else ""
        say(
            f"{line['name']}, {line['workload']}, {line['concurrency']} at once: {line['tokens_per_s']:,.0f} tokens/s{of_roofline}"
        )
    write(report)
