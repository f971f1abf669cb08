"""``serve run`` in the foreground, with an end that waits: ``python -m phi3_serve.launch.run CONFIG``.

Serve's own command dies of SIGTERM at once. Its end by SIGINT stops the proxies beside the replicas, so whoever waits
for an answer then gets none; that is what Ctrl-C is for.
"""

import os
import signal
import sys
import threading

import ray
from ray import serve
from ray.serve import scripts


def main(config: str) -> None:
    """Run ``config`` until SIGINT, or until SIGTERM and the end of all requests in flight."""
    ray.init(address=os.environ.get("RAY_ADDRESS"), namespace="serve")
    signal.signal(signal.SIGTERM, _end)  # after Ray has set its own
    scripts.cli.main(["run", config], prog_name="serve")


def _end(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the second one ends it
    print("Got SIGTERM: no request is taken any more; those in flight are answered.", file=sys.stderr, flush=True)
    # Not here: a signal comes in the middle of anything, and that may be a call of Ray's.
    threading.Thread(target=_drain).start()


def _drain() -> None:
    """Take the applications away while the proxies are there: replicas end when they have answered."""
    try:
        for name in serve.status().applications:
            serve.delete(name)
    finally:
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main(sys.argv[1])
