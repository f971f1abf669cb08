"""Real Ray clusters for the tests: started as a user starts them, ended by process id."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@dataclass
class Answer:
    status: int
    body: Any
    headers: Message  # names in any case


@dataclass
class Cluster:
    """A server process, where it listens, and everything it has started."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, path: str, body: Any = None, timeout: float = 60) -> Answer:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Answer(response.status, json.load(response), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error), error.headers)

    def wait_until_ready(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            # until the proxy knows the routes it answers 404 in plain text
            with contextlib.suppress(OSError, ValueError):
                if self.call("/ready", timeout=5).status == 200:
                    return
            time.sleep(0.3)
        raise AssertionError(f"not ready after {seconds} s:\n{self.log.read_text()[-3000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT, seconds: float = 60) -> None:
        """Signal the server as a terminal would, and wait for it and all it has started."""
        if self.process.poll() is not None:
            return
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, how)
        self.process.wait(seconds)

    def left_over(self, seconds: float = 15) -> list[str]:
        """The command lines of processes that outlive the server."""
        _, alive = psutil.wait_procs(self.children, timeout=seconds)
        names = []
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(" ".join(process.cmdline()))
        return names

    def end(self) -> None:
        """Leave nothing behind, whatever the test did."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.children += psutil.Process(self.process.pid).children(recursive=True)
        for process in self.children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


@contextlib.contextmanager
def running(command: list[str], log: Path, port: int, **env: str) -> Iterator[Cluster]:
    """``command`` as a process group of its own, with its output in ``log``."""
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray puts sockets into it
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={
                **os.environ,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_ADDRESS": "local",
                "RAY_TMPDIR": temporary,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                **env,
            },
            start_new_session=True,
        )
        cluster = Cluster(process, log, port)
        try:
            yield cluster
        finally:
            cluster.end()
            shutil.rmtree(temporary, ignore_errors=True)
