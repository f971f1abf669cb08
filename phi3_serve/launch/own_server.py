"""A server for one command: it starts if none runs, listens on this machine only, and ends with the command."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from rich.console import Console

from phi3_serve.client import Client, Refused, Unreachable
from phi3_serve.errors import Phi3ServeError
from phi3_serve.launch.proxy import free_port

END_TIMEOUT_S = 60.0
_POLL_INTERVAL_S = 0.3
_HOST = "127.0.0.1"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


@contextmanager
def server_at(url: str, config: Path | None) -> Iterator[str]:
    """Where a server listens: at ``url`` if one does, else at a free port of this machine, with ``config``.

    Without a ``config`` nothing is started.

    Raises:
        Phi3ServeError: the server could not be started; the message is its own.
    """
    if config is None or _answers(url):
        yield url
        return
    console = Console(stderr=True, highlight=False)
    console.print(f"No server listens at {url}. One starts with {config} and ends with this command.", soft_wrap=True)
    with _started(config) as own_url:
        yield own_url


@contextmanager
def _started(config: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "phi3_serve", "up", str(config), "--host", _HOST, "--port", str(port)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 - this interpreter
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C ends this command, which then ends the server
            preexec_fn=partial(_end_with, os.getpid()),
        )
        try:
            url = f"http://{_HOST}:{port}"
            _wait_until_ready(url, process, output)
            yield url
        finally:
            _end(process)


def _answers(url: str) -> bool:
    try:
        Client(url).get_text("/health")
    except Refused:
        return True
    except Unreachable:
        return False
    return True


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    """Wait until no model loads any more. A model that sleeps or has failed is not waited for."""
    while process.poll() is None:
        with suppress(Unreachable, Refused):
            states = [model["state"] for model in Client(url).get("/ready", also=503)["models"].values()]
            if "loading" not in states:
                return
        time.sleep(_POLL_INTERVAL_S)
    output.seek(0)
    raise Phi3ServeError(output.read().decode(errors="replace").strip())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server as Ctrl-C does, which ends everything that it has started."""
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):  # the second one does not wait for requests
        with suppress(subprocess.TimeoutExpired):
            process.send_signal(number)
            process.wait(END_TIMEOUT_S)
            return


def _end_with(parent: int) -> None:
    """In the child: get SIGINT if the process ``parent`` is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGINT)
