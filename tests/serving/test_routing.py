"""Who of two replicas gets a request, on a real Ray cluster. Who works is seen by the time that each process takes."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.oracle.adapters import save_adapter
from tests.serving.cluster import Head, serve_config
from tests.serving.test_faults import until
from tests.support import ENDLESS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KWARGS = {"do_sample": False, "max_new_tokens": 150, **ENDLESS}


def config(port: int, checkpoint: Path, **given: Any) -> dict[str, Any]:
    two = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.5, **given}
    model = {"name": "mine", "source": str(checkpoint), "device": "cpu", **two}
    return serve_config(port, {"models": [model], "http": {"num_cpus": 0.25}})


@pytest.fixture(scope="module")
def cluster(head: Head, checkpoint: Path) -> Head:
    head.deploy(config(head.port, checkpoint, routing="prefix"))
    until(lambda: len(replicas(head)) == 2, 60)
    for number in range(6):  # each of them has worked once
        ask(head, f"{number} warm up " * 100)
    return head


def replicas(cluster: Head) -> list[psutil.Process]:
    return cluster.processes("ray::ServeReplica:phi3:mine")


def ask(cluster: Head, prompt: str, session: str = "", path: str = "/chat") -> None:
    body = json.dumps({"prompt": prompt, "generate_kwargs": KWARGS}).encode()
    headers = {"Content-Type": "application/json", **({"X-Session-Id": session} if session else {})}
    with urllib.request.urlopen(urllib.request.Request(cluster.url + path, body, headers), timeout=60) as response:
        assert response.status == 200


def ask_for_several(cluster: Head, model: str) -> None:
    fields = {"model": model, "max_tokens": 3, "temperature": 0, **ENDLESS}
    prompts = [f"{number} of many" for number in range(20)]
    body = json.dumps({**fields, "prompt": prompts, "n": 2}).encode()
    request = urllib.request.Request(f"{cluster.url}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert len(json.load(response)["choices"]) == 2 * len(prompts)


def shares(cluster: Head, asked: list[tuple[Any, ...]]) -> list[float]:
    """Of the time that both took for ``asked``, the less busy one's first."""

    def seconds() -> dict[int, float]:
        return {p.pid: sum(p.cpu_times()[:2]) for p in replicas(cluster)}

    before = seconds()
    for one in asked:
        ask(cluster, *one)
    took = sorted(now - before[pid] for pid, now in seconds().items())
    return [one / sum(took) for one in took]


def test_a_session_and_a_long_start_stay_where_they_were(cluster: Head) -> None:
    assert shares(cluster, [(f"What about {n}?", "session") for n in range(15)])[1] > 0.8
    start = "You are a patient teacher of geography. " * 20
    assert shares(cluster, [(start + f"What about {n}?",) for n in range(15)])[1] > 0.8


def test_unrelated_prompts_are_for_both(cluster: Head) -> None:
    assert shares(cluster, [(f"{n} unrelated " * 60,) for n in range(30)])[0] > 0.2


def test_the_requests_of_one_call_are_all_routed(cluster: Head) -> None:
    """They have one id in Ray. Without ``FIFOMixin`` the ingress would answer nobody any more."""
    ask_for_several(cluster, "mine")


def test_an_adapter_stays_where_it_is_in_memory(cluster: Head, checkpoint: Path, tmp_path: Path) -> None:
    """The replicas stay, and get the adapter and another router."""
    place = save_adapter(tmp_path / "poet", checkpoint, seed=1)
    pids = {process.pid for process in replicas(cluster)}
    adapters = [{"name": "poet", "source": str(place)}]
    cluster.deploy(config(cluster.port, checkpoint, routing="load", adapters=adapters))
    until(lambda: cluster.call("/v1/models/mine:poet").status == 200, 30)
    cluster.wait_until_running()
    assert {process.pid for process in replicas(cluster)} == pids
    assert shares(cluster, [(f"{n} unrelated " * 60, "", "/mine:poet/chat") for n in range(20)])[1] > 0.8
    assert shares(cluster, [(f"{n} unrelated " * 60,) for n in range(30)])[0] > 0.2
    ask_for_several(cluster, "mine:poet")
