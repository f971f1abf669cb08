"""A process that prints once, in the terminal of ``phi3-serve up``, that the server is ready and how to call it.

``serve run`` prints nothing of this, and ``up`` is replaced by ``serve run``, so another process must do it.
"""

import contextlib
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from typing import Any

POLL_INTERVAL_S = 0.5
NOT_READY = 503


def print_when_ready(url: str, server_pid: int) -> None:
    """Wait until ``url`` is ready and print how to call it. Print a line for each model that cannot be loaded.

    Return when the server is ready and no model is loading, or without a word when the server has ended.
    """
    is_ready = False
    failed: set[str] = set()
    while _is_alive(server_pid):
        if readiness := _readiness(url):
            for name, state in readiness["models"].items():
                if state["state"] == "failed" and name not in failed:
                    failed.add(name)
                    rest = " The other models do not wait for it." if len(readiness["models"]) > 1 else ""
                    sys.stderr.write(f"\nModel {name} cannot be loaded: {state['detail']}{rest}\n")
            if readiness["ready"] and not is_ready:
                is_ready = True
                _print_how_to_call(url)
            if is_ready and all(state["state"] != "loading" for state in readiness["models"].values()):
                return
        time.sleep(POLL_INTERVAL_S)


def _print_how_to_call(url: str) -> None:
    body = '{"prompt": "<|user|> Who are you?<|end|><|assistant|>"}'
    sys.stderr.write(
        f"\nReady at {url} (parameters: {url}/docs, stop with Ctrl-C). Try:\n"
        f"  curl {url}/chat -H 'Content-Type: application/json' -d '{body}'\n\n"
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _readiness(url: str) -> Any:
    """The answer of ``/ready``; None while nobody gives it."""
    # Our own address, so its certificate need not be known.
    context = ssl._create_unverified_context() if url.startswith("https") else None  # noqa: S323
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5, context=context) as response:  # noqa: S310
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(ValueError):  # the proxy has an answer of its own before it knows the server
            answer = json.load(error)
            return answer if error.code == NOT_READY else None
    except (OSError, ValueError):
        pass
    return None


if __name__ == "__main__":
    # `up` waits for this parent, which ends at once. `serve run` would leave the child as a zombie.
    if os.fork() == 0:
        with contextlib.suppress(KeyboardInterrupt):
            print_when_ready(sys.argv[1], int(sys.argv[2]))
