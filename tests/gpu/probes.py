"""Parts for the test of ``make gpu``: those that pass, and those that end in all other ways."""

import os
import signal
import subprocess
import time
from typing import Any

from tests.gpu.report import say, write


def passes(name: str) -> dict[str, Any]:
    """Says something and has figures."""
    say(f"said by {name}")
    return {
        "process": os.getpid(),
        "allocator": os.environ["PYTORCH_ALLOC_CONF"],
        "decode": {"of_limit": 0.5},
    }


def raises(_: str) -> None:
    """Fails after some figures."""
    write({"so far": 1})
    raise ValueError("wrong by 3")


def dies(_: str) -> None:
    """Ends as after an illegal access."""
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs_with_a_child(_: str) -> None:
    """Never ends, and has started a process that holds the pipe."""
    child = subprocess.Popen(["sleep", "600"])
    write({"child": child.pid})
    time.sleep(600)


def sleeps(_: str) -> None:
    """Takes longer than there is time."""
    time.sleep(600)
