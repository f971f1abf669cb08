"""A process that prints once, in the terminal of ``phi3-serve up``, that the server is ready and how to call it.

``serve run`` prints nothing of this, and ``up`` is replaced by ``serve run``, so another process must do it.
"""

import contextlib
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

POLL_INTERVAL_S = 0.5


def print_when_ready(url: str, server_pid: int) -> None:
    """Wait until ``url`` is ready and print how to call it. Return without a word when the server has ended."""
    while _is_alive(server_pid):
        if _is_ready(url):
            body = '{"prompt": "<|user|> Who are you?<|end|><|assistant|>"}'
            sys.stderr.write(
                f"\nReady at {url} (parameters: {url}/docs, stop with Ctrl-C). Try:\n"
                f"  curl {url}/chat -H 'Content-Type: application/json' -d '{body}'\n\n"
            )
            return
        time.sleep(POLL_INTERVAL_S)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_ready(url: str) -> bool:
    try:
        # Our own address, so its certificate need not be known.
        context = ssl._create_unverified_context() if url.startswith("https") else None  # noqa: S323
        with urllib.request.urlopen(f"{url}/ready", timeout=5, context=context):  # noqa: S310
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    # `up` waits for this parent, which ends at once. `serve run` would leave the child as a zombie.
    if os.fork() == 0:
        with contextlib.suppress(KeyboardInterrupt):
            print_when_ready(sys.argv[1], int(sys.argv[2]))
