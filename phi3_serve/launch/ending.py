"""The end of ``phi3-serve up`` at SIGINT (Ctrl-C) and SIGTERM.

The first signal accepts no new requests and lets those in flight have their answers. If there are none, or at a second
signal, all processes end at once.
"""

import ctypes
import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import psutil
from rich.console import Console

from phi3_serve.config.model_name import INGRESS_NAME

POLL_INTERVAL_S = 0.5
COUNT_TIMEOUT_S = 1.5
INTERRUPTED = 130  # exit code, as in shells
_PR_SET_CHILD_SUBREAPER = 36  # of linux/prctl.h
_REPLICA = "SERVE_REPLICA::"


class Ending:
    """Handles the signals of this process, which runs Serve in its main thread."""

    def __init__(self, console: Console) -> None:
        self.has_begun = threading.Event()
        self._console = console
        self._owns_cluster = os.environ.get("RAY_ADDRESS") == "local"
        self._is_serving = False
        self._is_drained = False

    def take_signals(self, *, is_serving: bool) -> None:
        """Handle SIGINT and SIGTERM from now on. ``is_serving``: Ray runs, so requests may be in flight."""
        self._is_serving = is_serving
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_drained:
            raise KeyboardInterrupt  # Serve's command then ends Serve
        if not self._is_serving:
            end_all_processes(0)
        if self.has_begun.is_set():
            end_all_processes(INTERRUPTED)
        self.has_begun.set()
        # In a thread, because the signal may interrupt a call of Ray.
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        try:
            if num_requests := _num_requests():
                requests = "1 request in flight is" if num_requests == 1 else f"{num_requests} requests in flight are"
                self._console.print(
                    f"Ending: {requests} answered, and no new ones are accepted. Ctrl-C again ends at once.",
                    soft_wrap=True,
                )
            if num_requests or not self._owns_cluster:
                _drain()
        finally:
            if self._owns_cluster:
                end_all_processes(0)
            self._is_drained = True
            os.kill(os.getpid(), signal.SIGINT)


def end_all_processes(code: int) -> NoReturn:
    """Kill everything that this process has started, and exit with ``code``."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # children of what is killed become its own
    itself = psutil.Process()
    while alive := list(filter(_is_alive, itself.children(recursive=True))):
        for child in alive:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.02)
    os._exit(code)


def _is_alive(process: psutil.Process) -> bool:
    """Whether ``process`` runs. One that has ended may still free its memory, for seconds on a busy machine."""
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _num_requests() -> int:
    """Requests in flight; the ingress has all of them."""
    import ray
    from ray.util import list_named_actors

    for _ in range(2):  # the first time it may be one that asks for the state of the server
        names = [actor["name"] for actor in list_named_actors(all_namespaces=True)]
        counts: list[Any] = []
        for name in names:
            if name.startswith(_REPLICA) and f"#{INGRESS_NAME}#" in name:
                with suppress(ValueError):  # it has ended
                    counts.append(ray.get_actor(name, namespace="serve").get_num_ongoing_requests.remote())
        # A replica that does not answer in time is in its constructor, and has no request.
        known, _ = ray.wait(counts, num_returns=len(counts), timeout=COUNT_TIMEOUT_S) if counts else ([], [])
        num_requests = 0
        for count in known:
            with suppress(ray.exceptions.RayError):  # its replica has ended
                num_requests += ray.get(count)
        if not num_requests:
            return 0
        time.sleep(0.2)
    return num_requests


def _drain() -> None:
    """Delete the applications while the proxies still run: replicas end after their last answer.

    Serve ends each replica after its ``graceful_shutdown_timeout_s``, so this takes no longer than the longest request
    that the config allows. ``serve.delete`` itself would wait for a minute at most.
    """
    from ray import serve

    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    while serve.status().applications:
        time.sleep(POLL_INTERVAL_S)
