"""Changes while requests come: limits and defaults, new versions, an end. On a real Ray cluster."""

import copy
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from phi3_serve.api.keys import hash_of
from phi3_serve.launch.ending import INTERRUPTED
from phi3_serve.launch.proxy import free_port
from tests.api.kaito.test_chat import PROMPT
from tests.serving.cluster import BIN, Answer, Cluster, Head, running, serve_config
from tests.serving.test_faults import until
from tests.support import ENDLESS

pytestmark = pytest.mark.cluster

MODEL = {"device": "cpu", "num_cpus": 0.5}
ASKED = {"prompt": PROMPT, "generate_kwargs": {"do_sample": False, "max_new_tokens": 40, **ENDLESS}}


@pytest.fixture(scope="module")
def cluster(head: Head) -> Head:
    return head


def config(port: int, checkpoint: Path, limits: dict[str, Any], *live: dict[str, Any]) -> dict[str, Any]:
    args = {
        "models": [{**MODEL, "name": "mine", "source": str(checkpoint)}],
        "http": {"num_cpus": 0.25},
        "limits": limits,
    }
    return serve_config(port, args, deployments=list(live))


@contextmanager
def asking(cluster: Cluster) -> Iterator[list[Answer]]:
    """Two clients that ask one request after the other; what they were answered."""
    answers: list[Answer] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answers.append(cluster.call("/chat", ASKED))

    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(ask) for _ in range(2)]
        try:
            yield answers
        finally:
            done.set()
        for client in asked:
            client.result(60)  # what a connection that was reset raises


def test_limits_and_defaults_reach_running_replicas(cluster: Head, checkpoint: Path) -> None:
    cluster.deploy(config(cluster.port, checkpoint, {}))
    cluster.wait_until_running()
    pids = {p.pid for p in cluster.processes("ray::ServeReplica:phi3")}
    usual = cluster.call("/chat", ASKED).body["Result"]
    silent = {"prompt": PROMPT, "return_full_text": False, "generate_kwargs": {"do_sample": False, **ENDLESS}}
    live = [
        {"name": "mine", "user_config": {"defaults": {"max_new_tokens": 3}, "limits": {"max_waiting_requests": 5}}},
        {"name": "ingress", "user_config": {"limits": {"max_body_bytes": 2000}}},
    ]
    with asking(cluster) as answers:
        cluster.deploy(config(cluster.port, checkpoint, {}, *live))
        until(lambda: len(cluster.call("/chat", silent).body["Result"]) < 30, 30)
        until(lambda: cluster.call("/chat", {"prompt": "a" * 3000}).status == 413, 30)
    assert {a.status for a in answers} == {200}
    assert {p.pid for p in cluster.processes("ray::ServeReplica:phi3")} == pids
    assert cluster.call("/chat", ASKED).body["Result"] == usual


def test_defaults_of_args_and_user_config_are_checked_together(cluster: Head, checkpoint: Path) -> None:
    """Serve's builder gets `args` alone."""

    def deploy(of_args: dict[str, Any], of_user_config: dict[str, Any]) -> None:
        both = config(cluster.port, checkpoint, {}, {"name": "mine", "user_config": {"defaults": of_user_config}})
        both["applications"][0]["args"]["models"][0]["defaults"] = of_args
        cluster.deploy(both, wait=False)

    cluster.clear()
    deploy({"num_return_sequences": 2, "do_sample": False}, {"num_beams": 2})
    cluster.wait_until_running()
    assert cluster.call("/chat", {"prompt": PROMPT}).status == 200
    deploy({"num_return_sequences": 3, "do_sample": False}, {"num_beams": 1, "top_k": 3})
    until(lambda: cluster.applications()["phi3"]["status"] == "DEPLOY_FAILED", 60)
    problem = "args.models[0].defaults: Greedy methods without beam search do not support `num_return_sequences`"
    assert problem in cluster.applications()["phi3"]["message"]
    assert cluster.call("/chat", {"prompt": PROMPT}).status == 200


def test_a_key_is_rotated_in_running_replicas(cluster: Head, checkpoint: Path) -> None:
    """While keys are required, `/ready` is open."""
    cluster.deploy(config(cluster.port, checkpoint, {}))
    cluster.wait_until_running()
    pids = {p.pid for p in cluster.processes("ray::ServeReplica:phi3")}

    def accept(*hashes: str) -> None:
        live = {"name": "ingress", "user_config": {"auth": {"key_hashes": list(hashes)}}}
        cluster.deploy(config(cluster.port, checkpoint, {}, live))

    def statuses() -> tuple[int, ...]:
        return tuple(cluster.call("/v1/models", key=key).status for key in ("old", "new"))

    old, new = hash_of("old"), hash_of("new")
    accept(old)
    until(lambda: statuses() == (200, 401), 30)
    accept(old, new)
    until(lambda: statuses() == (200, 200), 30)
    accept(new)
    until(lambda: statuses() == (401, 200), 30)
    accept("not a hash")
    time.sleep(3)
    assert statuses() == (401, 200)
    accept()
    until(lambda: cluster.call("/v1/models").status == 200, 30)
    assert {p.pid for p in cluster.processes("ray::ServeReplica:phi3")} == pids
    cluster.deploy(config(cluster.port, checkpoint, {}))


def test_a_model_that_sleeps_wakes_after_changes_of_others(cluster: Head, checkpoint: Path) -> None:
    """After a deploy that failed, and after the death of Serve's controller, too. What is not changed does not restart."""
    asleep = {**MODEL, "name": "asleep", "source": str(checkpoint), "min_replicas": 0}
    grows = {**MODEL, "name": "grows", "source": str(checkpoint), "max_replicas": 2}
    good = config(cluster.port, checkpoint, {})
    good["applications"][0]["args"]["models"] += [grows, asleep]
    cluster.clear()
    cluster.deploy(good)
    cluster.wait_until_running()
    pids = {cluster.replica_of(model).pid for model in ("mine", "grows")}
    bad = copy.deepcopy(good)
    bad["applications"][0]["args"]["models"][0]["bogus"] = 1
    cluster.deploy(bad, wait=False)
    until(lambda: "last deploy failed" in cluster.call("/ready").body["models"]["asleep"].get("detail", ""), 60)
    refused = cluster.call("/asleep/chat", ASKED, prefer="wait=60")
    assert (refused.status, refused.headers["Retry-After"]) == (503, None)
    assert refused.body["detail"] == (
        "Model asleep could not be started. The last deploy failed, as `serve status` shows; no replica starts before "
        "the next one."
    )
    assert {cluster.call(f"/{model}/chat", ASKED).status for model in ("mine", "grows")} == {200}
    good["applications"][0]["args"]["models"].append({**asleep, "name": "added"})
    cluster.deploy(good, wait=False)
    until(lambda: "added" in cluster.call("/ready").body["models"], 60)
    cluster.wait_until_running()
    assert cluster.call("/asleep/chat", ASKED, prefer="wait=60", timeout=90).status == 200
    (controller,) = cluster.processes("ray::ServeController")
    controller.kill()
    until(lambda: [p for p in cluster.processes("ray::ServeController") if p.pid != controller.pid], 60)
    assert cluster.call("/added/chat", ASKED, prefer="wait=60", timeout=90).status == 200
    assert {cluster.replica_of(model).pid for model in ("mine", "grows")} == pids


@pytest.mark.slow
def test_three_new_versions_take_over_without_one_failed_request(cluster: Head, checkpoint: Path) -> None:
    cluster.deploy(config(cluster.port, checkpoint, {}))
    cluster.wait_until_running()  # the test before may have left a replica of another version
    until(lambda: len(cluster.processes("ray::ServeReplica:phi3:mine")) == 1, 90)
    pids = {cluster.replica_of("mine").pid}
    with asking(cluster) as answers:
        for version in range(3):
            cluster.deploy(config(cluster.port, checkpoint, {"max_waiting_requests": 20 + version}))
            until(lambda: {p.pid for p in cluster.processes("ray::ServeReplica:phi3:mine")} - pids, 90)
            until(lambda: len(cluster.processes("ray::ServeReplica:phi3:mine")) == 1, 90)
            until(lambda: len(cluster.processes("ray::ServeReplica:phi3:ingress")) == 1, 90)
            pids.add(cluster.replica_of("mine").pid)
    assert len(pids) == 4
    assert len(answers) > 100
    assert [(a.status, a.body) for a in answers if (a.status, a.body) != (200, answers[0].body)] == []


@pytest.mark.slow
def test_a_model_comes_and_goes_beside_a_replica_that_stays(cluster: Head, checkpoint: Path) -> None:
    alone = config(cluster.port, checkpoint, {})
    cluster.deploy(alone)
    both = copy.deepcopy(alone)
    both["applications"][0]["args"]["models"].append({**MODEL, "name": "added", "source": str(checkpoint)})
    cluster.wait_until_running()  # the test before may have left other limits, so a replica of another version
    until(lambda: len(cluster.processes("ray::ServeReplica:phi3:mine")) == 1, 90)
    before = cluster.replica_of("mine").pid
    with asking(cluster) as answers:
        cluster.deploy(both)
        until(lambda: cluster.call("/chat", {**ASKED, "model": "added"}).status == 200, 90)
        cluster.deploy(alone)
        until(lambda: not cluster.processes("ray::ServeReplica:phi3:added"), 90)
        until(lambda: cluster.call("/chat", {**ASKED, "model": "added"}).status == 404, 90)
    assert cluster.replica_of("mine").pid == before
    assert [(a.status, a.body) for a in answers if (a.status, a.body) != (200, answers[0].body)] == []


LONG = {"prompt": PROMPT, "generate_kwargs": {"do_sample": False, "max_new_tokens": 1900, **ENDLESS}}


@contextmanager
def server_to_end(checkpoint: Path, directory: Path) -> Iterator[Cluster]:
    """`phi3-serve up` with a model, and with one that waits for a node that never comes."""
    port = free_port()
    args = {
        "models": [
            {"name": "mine", "source": str(checkpoint), "device": "cpu", "num_cpus": 0.5},
            {"name": "waited-for", "source": str(checkpoint), "device": "cpu", "min_replicas": 0, "num_cpus": 1000},
        ],
        "http": {"num_cpus": 0.25},
        "cluster": {"elastic": True},
    }
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(serve_config(port, args)))
    command = [str(BIN / "phi3-serve"), "up", str(directory / "config.yaml")]
    with running(command, directory / "log", port) as server:
        server.wait_until_ready()
        server.call("/chat", ASKED)
        yield server


def sigterm_waits_for_what_was_asked_and_ctrl_c_then_ends_at_once(checkpoint: Path, directory: Path) -> None:
    """SIGTERM as `kill` and systemd send it: to the one process."""
    with server_to_end(checkpoint, directory) as server, ThreadPoolExecutor(5) as pool:
        longest = pool.submit(server.call, "/waited-for/chat", ASKED, timeout=120, prefer="wait=66")
        asked = [pool.submit(server.call, "/chat", LONG) for _ in range(4)]
        until(lambda: server.in_flight("mine") == 4 and server.in_flight("waited-for") == 1, 30)
        server.children = psutil.Process(server.process.pid).children(recursive=True)
        os.kill(server.process.pid, signal.SIGTERM)
        answers = [one.exception(60) or one.result().status for one in asked]
        assert answers == [200] * 4
        until(lambda: " in flight " in server.log.read_text(), 10)
        assert server.process.poll() is None
        assert not longest.done()
        began = time.monotonic()
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.process.wait(20) == INTERRUPTED
        assert time.monotonic() - began < 5
        assert isinstance(longest.exception(20), OSError)  # the connection has ended
        assert server.left_over() == []


@pytest.mark.slow
def test_an_end_waits_for_what_was_asked(checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C, which a terminal sends to all processes in front of it.

    One request takes more than the minute that `serve.delete` waits. Meanwhile another server ends in another way.
    """
    with server_to_end(checkpoint, tmp_path / "first") as server, ThreadPoolExecutor(9) as pool:
        longest = pool.submit(server.call, "/waited-for/chat", ASKED, timeout=120, prefer="wait=66")
        asked = [pool.submit(server.call, "/chat", LONG) for _ in range(8)]
        until(lambda: server.in_flight("mine") == 8 and server.in_flight("waited-for") == 1, 30)
        server.children = psutil.Process(server.process.pid).children(recursive=True)
        os.killpg(server.process.pid, signal.SIGINT)
        answers = [one.exception(60) or one.result().status for one in asked]
        assert answers == [200] * 8
        sigterm_waits_for_what_was_asked_and_ctrl_c_then_ends_at_once(checkpoint, tmp_path / "second")
        assert "is starting now" in longest.result(120).body["detail"]
        assert server.process.wait(40) == 0
        assert "9 requests in flight are answered" in server.log.read_text()
        assert server.left_over() == []
