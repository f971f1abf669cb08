"""``serve run`` in the foreground, with an end that waits: ``python -m phi3_serve.serving.foreground CONFIG``.

Serve's own command dies of SIGTERM at once. Its end by SIGINT stops the proxies beside the replicas, so whoever waits
for an answer then gets none; that is what Ctrl-C is for.
"""

import os
import signal
import sys
from typing import NoReturn

import ray
from ray import serve
from ray.serve import scripts


def main(config: str) -> None:
    """Run ``config`` until SIGINT, or until SIGTERM and the end of all requests in flight."""
    ray.init(address=os.environ.get("RAY_ADDRESS"), namespace="serve")
    signal.signal(signal.SIGTERM, _drain)  # after Ray has set its own
    scripts.cli.main(["run", config], prog_name="serve")


def _drain(signum: int, frame: object) -> NoReturn:
    """Take the applications away while the proxies are there: replicas end when they have answered."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the second one ends it
    print("Got SIGTERM: no request is taken any more; those in flight are answered.", file=sys.stderr, flush=True)
    for name in serve.status().applications:
        serve.delete(name)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(sys.argv[1])
