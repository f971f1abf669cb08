"""``make chaos`` and ``make soak``: a server under a mix of requests, good and bad, for a while.

With chaos, something random dies every few seconds: a replica, an ingress, the proxy, its manager, the controller.
Without, nothing does, and what the server takes of memory and files is watched. Printed is what was sent, answered,
refused and lost; the exit code says whether the promises held:

- A plain request is answered, at the second try at the latest; a connection that is refused is not a try.
- A stream ends with ``[DONE]``, or with an error event or status; where its ingress or the proxy itself died, it may
  break off.
- A bad request gets its 4xx. A greedy answer is the same, byte for byte, from the first to the last.
"""

import contextlib
import http.client
import json
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, TypeVar

import psutil
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from phi3_serve.serving.backend import LOST_MESSAGE
from tests.serving.cluster import Answer, Head, head, serve_config
from tests.support import ENDLESS

QUESTION = {"messages": [{"role": "user", "content": "What is 347 + 285?"}], "generate_kwargs": {"do_sample": False}}
SAMPLED = {"prompt": "<|user|> Tell me a joke<|end|><|assistant|>", "generate_kwargs": {"max_new_tokens": 60}}
BEAMS = {**SAMPLED, "generate_kwargs": {"max_new_tokens": 30, "num_beams": 4, "num_return_sequences": 2}}
STREAM = {**SAMPLED, "stream": True, "generate_kwargs": {"max_new_tokens": 300, **ENDLESS}}
# Bodies that are refused, and as what.
BAD: tuple[tuple[Any, int], ...] = (
    ({"prompt": 3}, 422),
    ({"prompt": "a", "generate_kwargs": {"temprature": 1}}, 400),
    ({"prompt": "a", "generate_kwargs": {"num_beams": 10**9}}, 422),
    ({"prompt": "a", "model": "nobody"}, 404),
    ({"prompt": "a" * 100_000}, 400),
    ({}, 400),
)
VICTIMS: Mapping[str, tuple[str, ...]] = {
    "replica": ("ray::ServeReplica:phi3:phi-3-tiny",),
    "ingress": ("ray::ServeReplica:phi3:ingress",),
    "proxy": ("haproxy", "-f"),
    "proxy manager": ("ray::HAProxyManager",),
    "controller": ("ray::ServeController",),
}
CUTS_STREAMS = {"ingress", "proxy", "proxy manager"}
SECONDS_OF_CUTS = 15.0  # after such a kill: the client may see it late
SECONDS_AT_THE_DOOR = 20.0  # that a client goes on trying to connect

T = TypeVar("T")


@dataclass
class Tally:
    """What became of the requests."""

    sent: int = 0
    answered: int = 0  # a plain one or a bad one, as it should be
    retried: int = 0  # answered at the second try
    knocked: int = 0  # connections that were refused, and tried again a moment later
    whole_streams: int = 0
    ended_streams: int = 0  # by an error event
    cut_streams: int = 0  # where their ingress or the proxy had died
    lost: list[str] = field(default_factory=list)  # anything else
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str) -> None:
        """One more ``outcome``."""
        with self.lock:
            setattr(self, outcome, getattr(self, outcome) + 1)

    def lose(self, what: str) -> None:
        """A promise was broken."""
        with self.lock:
            self.lost.append(what)


class Clients:
    """Threads that ask, each its kind of request, until they are told to stop."""

    def __init__(self, cluster: Head, tally: Tally) -> None:
        self._cluster = cluster
        self._tally = tally
        answer = cluster.call("/chat", QUESTION)
        if answer.status != 200:
            raise RuntimeError(f"the server does not answer: {answer.status} {answer.body}")
        self._expected = answer.body
        self.killed: list[tuple[float, str]] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        """Ask until ``stopped``."""
        kinds: list[Callable[[], None]] = [
            self._greedy,
            self._greedy,
            self._sampled,
            self._beams,
            self._stream,
            self._stream,
            self._bad,
        ]
        with ThreadPoolExecutor(len(kinds)) as pool:
            for done in [pool.submit(self._go_on, kind) for kind in kinds]:
                done.result()

    def _go_on(self, ask: Callable[[], None]) -> None:
        while not self.stopped.is_set():
            self._tally.add("sent")
            ask()
            time.sleep(0.02)

    def _greedy(self) -> None:
        self._plain(QUESTION, lambda answer: (answer.status, answer.body) == (200, self._expected))

    def _sampled(self) -> None:
        self._plain(SAMPLED, lambda answer: answer.status == 200 and set(answer.body) == {"Result"})

    def _beams(self) -> None:
        self._plain(BEAMS, lambda answer: answer.status == 200 and len(answer.body["Results"]) == 2)

    def _bad(self) -> None:
        body, status = random.choice(BAD)
        self._plain(body, lambda answer: answer.status == status)

    def _plain(self, asked: Any, is_right: Callable[[Answer], bool]) -> None:
        for outcome in ("answered", "retried"):
            try:
                answer = self._at_the_door(lambda: self._cluster.call("/chat", asked, timeout=60))
            except (OSError, ValueError) as error:
                problem, pause = repr(error), 1.0
            else:
                if is_right(answer):
                    self._tally.add(outcome)
                    return
                problem = f"{answer.status} {answer.body}"
                pause = float(answer.headers.get("Retry-After", 1))
            time.sleep(pause)
        self._tally.lose(f"{asked}: {problem}")

    def _at_the_door(self, ask: Callable[[], T]) -> T:
        """What ``ask`` gives, once somebody listens: nothing was sent yet, so a client's library just tries again."""
        began = time.monotonic()
        while True:
            try:
                return ask()
            except OSError as error:
                refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
                if not refused or time.monotonic() - began > SECONDS_AT_THE_DOOR:
                    raise
            self._tally.add("knocked")
            time.sleep(0.2)

    def _stream(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._cluster.port, timeout=60)
        text, status, problem = "", 0, ""
        try:
            self._at_the_door(connection.connect)
            connection.request("POST", "/chat", json.dumps(STREAM), {"Content-Type": "application/json"})
            response = connection.getresponse()
            status = response.status
            while line := response.readline():
                text += line.decode()
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = repr(error)
        finally:
            connection.close()
        if "data: [DONE]" in text:
            self._tally.add("whole_streams")
        elif "event: error" in text or status in (429, 503) or LOST_MESSAGE in text:
            self._tally.add("ended_streams")
        elif any(time.monotonic() - when < SECONDS_OF_CUTS for when, what in self.killed if what in CUTS_STREAMS):
            self._tally.add("cut_streams")
        else:
            self._tally.lose(f"stream: {status} {problem} ...{text[-80:]!r}")


def main(
    seconds: Annotated[float, typer.Option(help="How long.", min=5)] = 600,
    every: Annotated[float, typer.Option(help="Seconds between two kills; 0: none (soak).", min=0)] = 10,
    seed: Annotated[int, typer.Option(help="Of the choice of victims.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Put a server of its own under load; exit with 1 where a promise did not hold."""
    with tempfile.TemporaryDirectory() as directory, head(Path(directory)) as cluster:
        model = {"name": "phi-3-tiny", "min_replicas": 2, "max_replicas": 2, "num_cpus": 0.5}
        health = {"health": {"check_period_s": 1}}
        args = {"models": [{**model, **health}], "http": {"num_cpus": 0.25, "replicas": 2}}
        cluster.deploy(serve_config(cluster.port, args))
        _recovery(cluster)
        time.sleep(2)  # either ingress reads the state of the cluster once a second
        tally = Tally()
        clients = Clients(cluster, tally)
        asking = threading.Thread(target=clients.run)
        before = footprint(cluster)
        asking.start()
        try:
            recoveries = go_on(cluster, clients, tally, seconds, every, random.Random(seed))
        finally:
            clients.stopped.set()
            asking.join()
        after = footprint(cluster)
    report(tally, recoveries, before, after, as_json=as_json)
    raise typer.Exit(bool(tally.lost))


def go_on(
    cluster: Head, clients: Clients, tally: Tally, seconds: float, every: float, rng: random.Random
) -> list[tuple[str, float]]:
    """Let time pass, and kill; what was killed, and after how many seconds a new request was answered."""
    recoveries: list[tuple[str, float]] = []
    began = time.monotonic()
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=seconds)
        while (passed := time.monotonic() - began) < seconds:
            progress.update(bar, completed=passed, description=f"{tally.sent} sent, {len(tally.lost)} lost")
            if every and passed > every * (len(recoveries) + 1) and (victims := _alive(cluster)):
                what = rng.choice(sorted(victims))
                with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself: another one is chosen
                    rng.choice(victims[what]).kill()
                    clients.killed.append((time.monotonic(), what))
                    recoveries.append((what, _recovery(cluster)))
            time.sleep(0.2)
    return recoveries


def _alive(cluster: Head) -> dict[str, list[psutil.Process]]:
    found = {what: cluster.processes(*words) for what, words in VICTIMS.items()}
    found["proxy"] = [p for p in found["proxy"] if _name(p) == "haproxy"]
    return {what: processes for what, processes in found.items() if processes}


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _recovery(cluster: Head) -> float:
    began = time.monotonic()
    while time.monotonic() - began < 120:
        try:
            if cluster.call("/chat", QUESTION, timeout=60).status == 200:
                break
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    return time.monotonic() - began


def footprint(cluster: Head) -> dict[str, int]:
    """Memory in MB, threads and open files of the replicas and the ingresses."""
    processes = cluster.processes("ray::ServeReplica:phi3")
    return {
        "processes": len(processes),
        "megabytes": round(sum(p.memory_info().rss for p in processes) / 1e6),
        "threads": sum(p.num_threads() for p in processes),
        "files": sum(p.num_fds() for p in processes),
    }


def report(
    tally: Tally, recoveries: list[tuple[str, float]], before: dict[str, int], after: dict[str, int], *, as_json: bool
) -> None:
    """What happened, as a table or as JSON."""
    counts = {
        name: getattr(tally, name)
        for name in ("sent", "answered", "retried", "knocked", "whole_streams", "ended_streams", "cut_streams")
    }
    counts["lost"] = len(tally.lost)
    kinds = Counter(what for what, _ in recoveries)
    killed = {
        what: {
            "times": kinds[what],
            "median_s": median(s for w, s in recoveries if w == what),
            "longest_s": max(s for w, s in recoveries if w == what),
        }
        for what in sorted(kinds)
    }
    if as_json:
        print(
            json.dumps(
                {"requests": counts, "lost": tally.lost[:20], "killed": killed, "before": before, "after": after}
            )
        )
        return
    console = Console()
    table = Table("requests", "")
    for name, count in counts.items():
        table.add_row(name.replace("_", " "), str(count))
    console.print(table)
    if killed:
        table = Table("killed", "times", "answered again after", "at most")
        for what, figures in killed.items():
            table.add_row(what, str(figures["times"]), f"{figures['median_s']:.1f} s", f"{figures['longest_s']:.1f} s")
        console.print(table)
    console.print(f"before {before}\nafter  {after}")
    for what in tally.lost[:20]:
        console.print(f"[red]lost[/] {what}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
