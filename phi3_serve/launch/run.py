"""``serve run`` in the foreground that drains at SIGTERM: ``python -m phi3_serve.launch.run CONFIG``.

Serve's own command ends at once at SIGTERM. At SIGINT (Ctrl-C) it stops the proxies together with the replicas, so
requests in flight get no answer.
"""

import os
import signal
import sys
import threading
import time

import ray
from ray import serve
from ray.serve import scripts

POLL_INTERVAL_S = 0.5


def main(config: str) -> None:
    """Run ``config`` until SIGINT, or until SIGTERM and the end of all requests in flight."""
    ray.init(address=os.environ.get("RAY_ADDRESS"), namespace="serve")
    signal.signal(signal.SIGTERM, _drain_and_end)  # after Ray has set its own handler
    scripts.cli.main(["run", config], prog_name="serve")


def _drain_and_end(signum: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the process
    print("Got SIGTERM: no new requests are accepted; requests in flight are answered.", file=sys.stderr, flush=True)
    # In a thread, because the signal may interrupt a call of Ray.
    threading.Thread(target=_drain).start()


def _drain() -> None:
    """Delete the applications while the proxies still run: replicas end after their last answer.

    Serve ends each replica after its ``graceful_shutdown_timeout_s``, so this takes no longer than the longest request
    that the config allows. ``serve.delete`` itself would wait for a minute at most.
    """
    try:
        for name in serve.status().applications:
            serve.delete(name, _blocking=False)
        while serve.status().applications:
            time.sleep(POLL_INTERVAL_S)
    finally:
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    main(sys.argv[1])
