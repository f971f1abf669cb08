"""Real Ray clusters for the tests: started as a user starts them, ended by process id."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from phi3_serve.launch import proxy as proxies
from phi3_serve.launch.proxy import Proxy, free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
STARTED: list[list[str]] = []  # the command of every cluster that this process has started


@dataclass
class Answer:
    status: int
    body: Any
    headers: Message  # names in any case


@dataclass
class Cluster:
    """A server process, where it listens, its files, and everything it has started."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    temporary: Path
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, path: str, body: Any = None, timeout: float = 60, *, prefer: str = "", key: str = "") -> Answer:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **({"Prefer": prefer} if prefer else {})}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Answer(response.status, json.load(response), response.headers)
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, json.load(error), error.headers)

    def in_flight(self, model: str) -> int:
        """Requests that the one ingress has with ``model``, as it tells Prometheus."""
        request = urllib.request.Request(self.url + "/metrics", headers={"Accept": "text/plain"})
        with urllib.request.urlopen(request, timeout=10) as response:
            text = response.read().decode()
        found = re.search(rf'num_requests_in_flight{{model_name="{re.escape(model)}"}} (\S+)', text)
        return int(float(found[1])) if found else 0

    def wait_until_ready(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.logs()
            # until the proxy knows the routes it answers 404 in plain text
            with contextlib.suppress(OSError, ValueError):
                if self.call("/ready", timeout=5).status == 200:
                    return
            time.sleep(0.3)
        raise AssertionError(f"not ready after {seconds} s:\n{self.logs()}")

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

    def logs(self) -> str:
        """The last lines of its output, and of the logs of Serve's controller and proxy."""
        logs = self.temporary.glob("*/logs/serve/[cp]r*o*.log"), self.temporary.glob("**/logs/serve/controller_*.log")
        found = sorted({log for several in logs for log in several if not log.parents[2].is_symlink()})
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}" for log in (self.log, *found))

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


def _problem_of_put(request: urllib.request.Request) -> str | None:
    """PUT ``request``; why it may be tried again, or None if it was accepted."""
    request.method = "PUT"
    try:
        with urllib.request.urlopen(request, timeout=60):
            return None
    except urllib.error.HTTPError as error:
        with error:
            if error.code < 500:
                raise ValueError(error.read().decode()) from error
            return f"{error.code} {error.read().decode()}"
    except OSError as error:
        return repr(error)


@contextlib.contextmanager
def running(command: list[str], log: Path, port: int, **env: str) -> Iterator[Cluster]:
    """``command`` as a process group of its own, with its output in ``log``."""
    STARTED.append(command)
    temporary = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # short: Ray puts sockets into it
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={
                **os.environ,
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_ADDRESS": "local",
                "RAY_TMPDIR": str(temporary),
                "PATH": f"{BIN}:{os.environ['PATH']}",
                **env,
            },
            start_new_session=True,
        )
        cluster = Cluster(process, log, port, temporary)
        try:
            yield cluster
        except BaseException:
            print(cluster.logs())  # pytest shows it with the failure
            raise
        finally:
            cluster.end()
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(kw_only=True)
class Head(Cluster):
    """A Ray cluster that applications are deployed on, as on a server or on Kubernetes."""

    dashboard: int
    gcs: int
    directory: Path

    def deploy(self, config: Mapping[str, Any], *, wait: bool = True) -> None:
        """Deploy ``config`` by the call that `serve deploy` makes, without the seconds that this command takes to start."""
        url = f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"
        headers = {"Content-Type": "application/json"}
        end = time.monotonic() + 60
        while (
            problem := _problem_of_put(urllib.request.Request(url, json.dumps(config).encode(), headers))
        ) is not None:
            assert time.monotonic() < end, problem
            time.sleep(0.5)  # the dashboard takes its time to start
        if wait:
            self.wait_until_ready()

    def wait_until_running(self, seconds: float = 90) -> None:
        """Wait until Serve has carried out the last deploy: every deployment runs its newest version."""
        end = time.monotonic() + seconds
        while True:
            states = {name: application["status"] for name, application in self.applications().items()}
            if set(states.values()) == {"RUNNING"}:
                return
            assert time.monotonic() < end, states
            time.sleep(0.3)

    def applications(self) -> dict[str, Any]:
        """What Serve says about each application."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.dashboard}/api/serve/applications/", timeout=10
        ) as response:
            found: dict[str, Any] = json.load(response)["applications"]
        return found

    def clear(self, seconds: float = 60) -> None:
        """Delete every application, and wait for the end of its replicas."""
        self.deploy({"http_options": {"host": "127.0.0.1", "port": self.port}, "applications": []}, wait=False)
        end = time.monotonic() + seconds
        while left := self.processes("ray::ServeReplica:"):
            assert time.monotonic() < end, left
            time.sleep(0.1)

    def load_of(self, model: str) -> dict[str, int]:
        """What the engine of ``model`` has to do."""
        command = [sys.executable, "-m", "tests.serving.load_of", f"127.0.0.1:{self.gcs}", model]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=True)
        load: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
        return load

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of the cluster with all ``words`` in their command lines."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                if all(word in line for word in words):
                    found.append(process)
        return found

    def replica_of(self, model: str) -> psutil.Process:
        """The process of the one replica of ``model``."""
        (found,) = self.processes(f"ray::ServeReplica:phi3:{model}")
        return found


@contextlib.contextmanager
def head(directory: Path, *, num_cpus: int = 4, proxy: Proxy = "haproxy", **env: str) -> Iterator[Head]:
    """`ray start --head --block`, in front of which ``proxy`` will stand."""
    port, dashboard, gcs = free_port(), free_port(), free_port()
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--num-cpus={num_cpus}", "--disable-usage-stats"),
    ]
    variables = proxies.environment(proxy, port=port, request_timeout_s=600)
    with running(command, directory / "log", port, RAY_AUTH_MODE="disabled", **{**variables, **env}) as cluster:
        yield Head(**vars(cluster), dashboard=dashboard, gcs=gcs, directory=directory)


def serve_config(port: int, args: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A Serve config of one application with these ``args``."""
    application = {
        "name": "phi3",
        "route_prefix": "/",
        "import_path": "phi3_serve.serving.app:build_app",
        "args": dict(args),
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [{**application, **more}]}


@contextlib.contextmanager
def up(directory: Path, checkpoint: Path) -> Iterator[Cluster]:
    """`phi3-serve up` with one model of every kind: running, asleep, broken, and for a GPU that is not there."""
    port = free_port()
    models: list[dict[str, Any]] = [
        {"name": "phi-3-tiny", "num_cpus": 0.25},
        {"name": "mine", "source": str(checkpoint), "device": "cpu", "num_cpus": 0.25},
        {"name": "org/lazy", "source": str(checkpoint), "device": "cpu", "min_replicas": 0, "num_cpus": 0.25},
        {"name": "broken", "source": f"{directory}/gone", "device": "cpu", "min_replicas": 0, "num_cpus": 0.25},
        {"name": "phi-3-mini-4k-instruct", "min_replicas": 0},
    ]
    args = {"models": models, "limits": {"max_waiting_requests": 2}, "http": {"num_cpus": 0.25}}
    (directory / "config.yaml").write_text(yaml.safe_dump(serve_config(port, args)))
    command = [str(BIN / "phi3-serve"), "up", str(directory / "config.yaml")]
    # milliseconds between two reports of metrics; Ray's default of ten seconds would be waited for by tests
    with running(command, directory / "log", port, RAY_metrics_report_interval_ms="1000") as cluster:
        cluster.wait_until_ready()
        yield cluster


C = TypeVar("C", bound=Cluster)


class SharedClusters:
    """Clusters that the tests of several files use. Only one runs at a time, so that none slows the other down."""

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._stack = contextlib.ExitStack()

    def use(self, kind: type[C], start: Callable[[], AbstractContextManager[C]]) -> C:
        """The cluster that runs, if it is of this kind; else end it and start one."""
        if type(self._cluster) is kind and self._cluster.process.poll() is None:
            return self._cluster
        self.close()
        started = self._stack.enter_context(start())
        self._cluster = started
        return started

    def close(self) -> None:
        """End the cluster that runs."""
        self._stack.close()
        self._cluster = None
