"""What breaks while the server works: engines, replicas, proxies, the controller, the disk. On a real Ray cluster."""

import http.client
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from phi3_serve.serving.backend import LOST_MESSAGE
from tests.api.kaito.test_chat import GREEDY, PROMPT
from tests.serving.cluster import Answer, Head, serve_config
from tests.serving.faulty import poison
from tests.support import ENDLESS

pytestmark = pytest.mark.cluster

LONG = {"do_sample": True, "max_new_tokens": 1500, **ENDLESS}  # seconds of work
SHORT = {"prompt": PROMPT, "generate_kwargs": GREEDY}
LONG_COMPLETION = {"max_tokens": 1500, "generate_kwargs": ENDLESS}
GREEDY_COMPLETION = {"max_tokens": 8, "temperature": 0}


def config(port: int, checkpoint: Path, **limits: Any) -> dict[str, Any]:
    health = {"check_period_s": 1, "stuck_after_s": 2}
    model = {"name": "mine", "source": str(checkpoint), "device": "cpu", "num_cpus": 0.5, "health": health}
    # Two replicas, of which the requests of a session go to the same one.
    pair = {**model, "name": "pair", "num_cpus": 0.25, "min_replicas": 2, "max_replicas": 2, "routing": "prefix"}
    args = {"models": [model, pair], "http": {"num_cpus": 0.25}, "limits": limits}
    return serve_config(port, args, import_path="tests.serving.faulty:build_app")


@pytest.fixture(scope="module")
def cluster(head: Head, checkpoint: Path) -> Head:
    head.deploy(config(head.port, checkpoint))
    return head


@pytest.fixture
def fault(cluster: Head) -> Iterator[Callable[[str], None]]:
    def have(name: str) -> None:
        (cluster.directory / name).touch()

    yield have
    until(lambda: cluster.call("/chat", SHORT).status == 200, 60)


def until(condition: Callable[[], Any], seconds: float) -> float:
    """How long it took until ``condition`` held; what the network says meanwhile does not count."""
    began = time.monotonic()
    while True:
        with suppress(OSError, ValueError):
            if condition():
                return time.monotonic() - began
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


def lines_of_a_stream(cluster: Head, kwargs: dict[str, Any]) -> tuple[http.client.HTTPConnection, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    body = {"prompt": PROMPT, "stream": True, "generate_kwargs": kwargs}
    connection.request("POST", "/chat", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    return connection, response


def test_a_full_gpu_is_a_503_and_the_next_request_is_answered(cluster: Head, fault: Callable[[str], None]) -> None:
    before = cluster.replica_of("mine").pid
    fault("out_of_memory")
    answer = cluster.call("/chat", SHORT)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    assert answer.body == {"detail": "The GPU has too little free memory for this request now."}
    assert cluster.call("/chat", SHORT).status == 200
    assert cluster.replica_of("mine").pid == before


@pytest.mark.parametrize("name", ["device_assert", "hang"])
def test_an_engine_that_cannot_go_on_is_replaced_and_who_waits_is_answered(
    cluster: Head, fault: Callable[[str], None], name: str
) -> None:
    """The requests of the step that failed may be the cause."""
    expected = cluster.call("/chat", SHORT).body
    before = cluster.replica_of("mine").pid
    fault(name)
    with ThreadPoolExecutor(6) as pool:
        asked = []
        for _ in range(6):
            asked.append(pool.submit(cluster.call, "/chat", SHORT, timeout=120))
            time.sleep(0.05)
        answers = [one.result() for one in asked]
    assert is_loss(answers[0])
    assert [(a.status, a.body) for a in answers if not is_loss(a)] == [(200, expected)] * sum(
        not is_loss(a) for a in answers
    )
    assert not is_loss(answers[-1])
    assert cluster.replica_of("mine").pid != before


def is_loss(answer: Answer) -> bool:
    """Whether the replica has ended while it ran the request. Nothing invites the client to send it again."""
    if answer.status != 500:
        return False
    assert answer.body in (
        {"detail": LOST_MESSAGE},
        {"error": {**answer.body.get("error", {}), "message": LOST_MESSAGE}},
    )
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["Retry-After"] is None
    return True


@pytest.fixture
def pair(cluster: Head) -> Iterator[Callable[..., Answer]]:
    """Asks the model with two replicas. All requests of a test go to the same replica, as long as it lives."""
    session = {"model": "pair", "prompt_cache_key": str(time.monotonic())}

    def ask(prompt: str = "Hi", **body: Any) -> Answer:
        return cluster.call("/v1/completions", {**session, "prompt": prompt, **body}, timeout=120)

    until(lambda: len(replicas_of_pair(cluster)) == 2 and has_two_running(cluster), 90)
    assert ask(max_tokens=3).status == 200
    yield ask
    until(lambda: len(replicas_of_pair(cluster)) == 2, 90)


def replicas_of_pair(cluster: Head) -> set[int]:
    return {process.pid for process in cluster.processes("ray::ServeReplica:phi3:pair")}


def has_two_running(cluster: Head) -> bool:
    """Whether Serve, too, has two replicas of the model."""
    url = f"http://127.0.0.1:{cluster.dashboard}/api/serve/applications/"
    with urllib.request.urlopen(url, timeout=10) as response:
        deployment = json.load(response)["applications"]["phi3"]["deployments"]["pair"]
    return [replica["state"] for replica in deployment["replicas"]] == ["RUNNING"] * 2


def test_a_poisonous_request_takes_one_replica_with_it(cluster: Head, pair: Callable[..., Answer]) -> None:
    """Who ran beside it may be the cause as well. Who waited is answered by the other replica."""
    before = replicas_of_pair(cluster)
    expected = pair(**GREEDY_COMPLETION).body["choices"]
    with ThreadPoolExecutor(8) as pool:
        beside = pool.submit(pair, **LONG_COMPLETION)
        time.sleep(1)
        poisonous = pool.submit(pair, poison(2000))
        time.sleep(0.7)
        waiting = [pool.submit(pair, **GREEDY_COMPLETION) for _ in range(4)]
        assert is_loss(poisonous.result())
        assert is_loss(beside.result())
        answers = [one.result() for one in waiting]
    assert [(a.status, a.body["choices"]) for a in answers] == [(200, expected)] * 4
    assert len(before & replicas_of_pair(cluster)) == 1


def test_poison_that_kills_at_once_takes_one_replica(cluster: Head, pair: Callable[..., Answer]) -> None:
    before = replicas_of_pair(cluster)
    assert is_loss(pair(poison(0)))
    assert len(before & replicas_of_pair(cluster)) == 1


def test_poison_that_waited_takes_one_replica(cluster: Head, pair: Callable[..., Answer]) -> None:
    before = replicas_of_pair(cluster)
    all_rows = {"generate_kwargs": {"num_beams": 64, "max_new_tokens": 40, "do_sample": False, **ENDLESS}}
    with ThreadPoolExecutor(8) as pool:
        full = [pool.submit(pair, **all_rows) for _ in range(2)]
        time.sleep(0.7)
        poisonous = pool.submit(pair, poison(50))
        answers = [one.result() for one in full]
        assert is_loss(poisonous.result())
    # The poison begins when the first of the two has ended; the other may run beside it.
    assert 200 in [answer.status for answer in answers]
    assert all(answer.status == 200 or is_loss(answer) for answer in answers)
    assert len(before & replicas_of_pair(cluster)) == 1


def test_a_stream_ends_in_an_error_when_its_engine_cannot_go_on(cluster: Head, fault: Callable[[str], None]) -> None:
    connection, response = lines_of_a_stream(cluster, LONG)
    response.readline()
    fault("device_assert")
    rest = response.read().decode()
    connection.close()
    assert "event: error" in rest
    assert LOST_MESSAGE in rest
    assert "[DONE]" not in rest


def test_a_full_log_disk_stops_nothing(cluster: Head, fault: Callable[[str], None]) -> None:
    expected = cluster.call("/chat", SHORT)
    assert expected.status == 200
    fault("full_disk")
    for _ in range(5):
        assert cluster.call("/chat", SHORT).body == expected.body
    assert not (cluster.directory / "full_disk").exists()


def test_a_dead_proxy_is_back_within_seconds_and_lies_to_nobody(cluster: Head) -> None:
    """Between its start and its first routes, Ray's HAProxy would answer 404."""
    for victim in ("haproxy", "ray::HAProxyManager"):
        proxies = haproxies(cluster)  # after a reload an earlier one may still finish its requests
        assert proxies
        for process in proxies if victim == "haproxy" else cluster.processes(victim):
            process.kill()
        _, alive = psutil.wait_procs(proxies, 10)  # they go with their manager, a moment later
        assert not alive
        assert until(lambda: is_answered(cluster), 30) < 15
        assert all(is_answered(cluster) for _ in range(20))


def haproxies(cluster: Head) -> list[psutil.Process]:
    return [process for process in cluster.processes("haproxy", "-f") if process.name() == "haproxy"]


def is_answered(cluster: Head) -> bool:
    """Whether somebody listens, and then gives the right answer. Fails where it is another."""
    try:
        connection = socket.create_connection(("127.0.0.1", cluster.port), 5)
    except ConnectionRefusedError:
        return False
    with connection:
        body = json.dumps(SHORT)
        head = f"POST /chat HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        answer = connection.makefile("rb").read()
    assert b" 200 " in answer.split(b"\r\n")[0], answer
    return True


def test_a_dead_controller_has_no_effect(cluster: Head) -> None:
    failed: list[Answer] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            answer = cluster.call("/chat", SHORT)
            if answer.status != 200:
                failed.append(answer)

    asking = threading.Thread(target=ask)
    asking.start()
    (controller,) = cluster.processes("ray::ServeController")
    try:
        controller.kill()
        until(lambda: [p for p in cluster.processes("ray::ServeController") if p.pid != controller.pid], 60)
        time.sleep(2)
    finally:
        done.set()
    asking.join()
    assert [(a.status, a.body) for a in failed] == []


def test_a_dead_ingress_is_replaced(cluster: Head) -> None:
    (ingress,) = cluster.processes("ray::ServeReplica:phi3:ingress")
    ingress.kill()
    until(lambda: cluster.call("/chat", SHORT, timeout=5).status == 200, 60)


def test_a_client_that_does_not_read_keeps_nobody_waiting(cluster: Head) -> None:
    deaf = [lines_of_a_stream(cluster, LONG)[0] for _ in range(4)]
    began = time.monotonic()
    assert cluster.call("/chat", SHORT).status == 200
    assert time.monotonic() - began < 10
    for connection in deaf:
        connection.close()
    until(lambda: cluster.load_of("mine")["num_running"] == 0, 30)
