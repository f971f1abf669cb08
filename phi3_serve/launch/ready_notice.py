"""Says once, in the terminal of ``phi3-serve up``, that the server is ready and how to call it.

``serve run`` itself does not tell. This is a process of its own beside it: ``up`` becomes ``serve run``.
"""

import contextlib
import os
import sys
import time
import urllib.error
import urllib.request

SECONDS_BETWEEN_TRIES = 0.5


def announce(url: str, server_pid: int) -> None:
    """Wait until ``url`` is ready, print how to call it, and end; end too when the server is gone."""
    while _is_alive(server_pid):
        if _is_ready(url):
            body = '{"prompt": "<|user|> Who are you?<|end|><|assistant|>"}'
            sys.stderr.write(
                f"\nReady at {url} (parameters: {url}/docs, stop with Ctrl-C). Try:\n"
                f"  curl {url}/chat -H 'Content-Type: application/json' -d '{body}'\n\n"
            )
            return
        time.sleep(SECONDS_BETWEEN_TRIES)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5):  # noqa: S310 - our own http address
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    # The parent ends at once and is waited for; `serve run` would not wait for a child that it does not know.
    if os.fork() == 0:
        with contextlib.suppress(KeyboardInterrupt):
            announce(sys.argv[1], int(sys.argv[2]))
