"""Four variants on two nodes with GPUs in name: placed, scaled up, put to sleep, and back after a node is lost."""

import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from phi3_serve.launch import proxy as proxies
from phi3_serve.launch.proxy import free_port
from tests.api.kaito.test_chat import GREEDY, PROMPT
from tests.serving.cluster import Cluster, running, serve_config
from tests.serving.nodes import GROUP
from tests.serving.test_faults import until
from tests.support import ENDLESS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

VARIANTS = (
    "phi-3-mini-4k-instruct",
    "phi-3-mini-128k-instruct",
    "phi-3-medium-4k-instruct",
    "phi-3-medium-128k-instruct",
)
GROWING, SLEEPING = VARIANTS[0], VARIANTS[3]


class Nodes(Cluster):
    """The cluster of ``tests.serving.nodes``."""

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        size = self.num_read
        until(lambda: len(self._lines()) > size, 60)
        self.num_read += 1
        return self._lines()[size]

    num_read: int = 0
    port_of_nodes: int = 0

    def _lines(self) -> list[str]:
        return [
            line for line in self.log.read_text().splitlines() if line == "done" or line.startswith(('{"one"', "up"))
        ]

    def where(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = json.loads(self.tell("where"))
        return found

    def states(self) -> dict[str, str]:
        return {name: model["state"] for name, model in self.call("/ready", timeout=10).body["models"].items()}


def model(name: str, checkpoint: Path) -> dict[str, Any]:
    """A variant on a GPU as the cluster counts them, that computes on the CPU."""
    made: dict[str, Any] = {"name": name, "source": str(checkpoint), "device": "cpu", "num_gpus": 1, "num_cpus": 0.5}
    made["label_selector"] = {GROUP: "gpu"}
    scaling = {"target_load": 2, "upscale_delay_s": 0, "downscale_delay_s": 5, "sleep_after_s": 2, "look_back_s": 2}
    if name == GROWING:
        return {**made, "max_replicas": 2, "scaling": scaling}
    return {**made, "min_replicas": 0, "scaling": scaling} if name == SLEEPING else made


@pytest.fixture(scope="module")
def cluster(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    directory, port, port_of_nodes = tmp_path_factory.mktemp("nodes"), free_port(), free_port()
    args = {
        "models": [model(name, checkpoint) for name in VARIANTS],
        "http": {"num_cpus": 0.25, "label_selector": {GROUP: "cpu"}},
    }
    config = {"proxy_location": "EveryNode", **serve_config(port, args)}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "tests.serving.nodes", str(directory / "config.yaml")]
    env = {
        **proxies.environment("haproxy", port=port, request_timeout_s=600),
        # The nodes share one machine, and so the ports of their proxies; the kernel chooses between them.
        "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(port_of_nodes),
        "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "",
    }
    with running(command, directory / "log", port, **env) as started:
        nodes = Nodes(**vars(started))
        nodes.port_of_nodes = port_of_nodes
        until(lambda: "up" in nodes._lines(), 120)
        nodes.num_read = 1
        nodes.wait_until_ready(180)
        yield nodes


def ask(cluster: Cluster, name: str) -> int:
    return cluster.call(f"/{name}/chat", {"prompt": PROMPT, "generate_kwargs": GREEDY}).status


def test_every_node_has_a_proxy_that_answers(cluster: Nodes) -> None:
    at_the_nodes = replace(cluster, port=cluster.port_of_nodes)
    until(lambda: [ask(at_the_nodes, name) for name in VARIANTS[:3]] == [200] * 3, 120)
    assert [ask(at_the_nodes, VARIANTS[0]) for _ in range(20)] == [200] * 20
    started = psutil.Process(cluster.process.pid).children(recursive=True)
    assert [process.name() for process in started].count("haproxy") == 3


def test_every_variant_has_its_gpu(cluster: Nodes) -> None:
    until(lambda: sum(state == "ready" for state in cluster.states().values()) == 3, 120)
    where = cluster.where()
    assert sorted(where["one"] + where["two"]) == sorted(VARIANTS[:3])
    assert where["head"] == ["ingress"]  # by its label; without it Serve would spread it to a node with a GPU
    assert cluster.states()[SLEEPING] == "scaled_to_zero"
    assert [ask(cluster, name) for name in VARIANTS[:3]] == [200] * 3


def test_a_sleeping_variant_wakes_and_sleeps_again(cluster: Nodes) -> None:
    assert ask(cluster, SLEEPING) == 503
    until(lambda: ask(cluster, SLEEPING) == 200, 90)
    until(lambda: cluster.states()[SLEEPING] == "scaled_to_zero", 90)


def test_a_variant_grows_under_load_and_shrinks_after_it(cluster: Nodes) -> None:
    def replicas() -> int:
        return sum(models.count(GROWING) for models in cluster.where().values())

    body = {"prompt": PROMPT, "generate_kwargs": {"max_new_tokens": 400, **ENDLESS}}
    done = threading.Event()

    def load() -> set[int]:
        seen = set()
        while not done.is_set():
            seen.add(cluster.call(f"/{GROWING}/chat", body).status)
        return seen

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(load) for _ in range(8)]
        try:
            until(lambda: replicas() == 2, 90)
        finally:
            done.set()
        assert set().union(*(one.result(60) for one in asking)) == {200}
    until(lambda: replicas() == 1, 120)


def test_a_lost_node_s_variants_are_back_on_the_other(cluster: Nodes) -> None:
    until(lambda: sum(state == "ready" for state in cluster.states().values()) == 3, 120)
    where = cluster.where()
    lost, kept = ("one", "two") if len(where["one"]) >= len(where["two"]) else ("two", "one")
    models = [name for name in where[lost] if name in VARIANTS]
    assert models
    assert cluster.tell(f"kill {lost}") == "done"
    # The replicas themselves outlive their node by a moment, and may answer once more.
    until(lambda: set(VARIANTS[:3]) <= set(cluster.where()[kept]), 180)
    assert cluster.where()[lost] == []
    for name in VARIANTS[:3]:
        until(lambda name=name: ask(cluster, name) == 200, 60)  # type: ignore[misc]
