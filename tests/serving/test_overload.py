"""More clients than there is room for, and clients that go away: on a real Ray cluster."""

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from phi3_serve.bench.overload import Reply, ask, chat_body, chat_request
from tests.api.kaito.test_chat import GREEDY, PROMPT
from tests.serving.cluster import Head, serve_config
from tests.serving.test_faults import until
from tests.support import ENDLESS

pytestmark = pytest.mark.cluster

SHORT = {"prompt": PROMPT, "generate_kwargs": GREEDY}


@pytest.fixture(scope="module")
def cluster(head: Head, checkpoint: Path) -> Head:
    model = {"name": "mine", "source": str(checkpoint), "device": "cpu", "num_cpus": 0.5}
    args = {"models": [model], "http": {"num_cpus": 0.25}, "limits": {"max_waiting_requests": 32}}
    head.deploy(serve_config(head.port, args))
    return head


def resident(*processes: psutil.Process) -> float:
    """Megabytes."""
    return float(sum(process.memory_info().rss for process in processes) / 1e6)


def test_a_thousand_clients_at_once_get_an_answer_or_a_429(cluster: Head) -> None:
    processes = [cluster.replica_of("mine"), *cluster.processes("ray::ServeReplica:phi3:ingress")]
    request = chat_request(cluster.url, chat_body("mine", 16))

    async def all_at_once() -> list[Reply]:
        return await asyncio.gather(*(ask(request, 120) for _ in range(1000)))

    for _ in range(3):  # what is kept for the next crowd has its size after the third
        asyncio.run(all_at_once())
    before = resident(*processes)
    replies = asyncio.run(all_at_once())
    counts = Counter(reply.status for reply in replies)
    assert set(counts) == {200, 429}, counts
    assert counts[200] >= 128
    assert len({json.dumps(reply.body) for reply in replies if reply.status == 200}) == 1
    refusals = [reply for reply in replies if reply.status == 429]
    assert all(set(reply.body) == {"detail"} and reply.retry_after_s == 5 for reply in refusals)
    # The ingress never has more inside than it has room for, so HAProxy has refused these, and the others spared it.
    counted = [[int(number) for number in re.findall(r"\d+", reply.body["detail"])] for reply in refusals]
    assert sum(inside > room for inside, room in counted) > len(refusals) * 0.9
    assert cluster.call("/chat", SHORT).status == 200
    until(lambda: resident(*processes) < before * 1.05, 10)


@pytest.mark.slow
def test_a_thousand_clients_that_go_away_leave_nothing(cluster: Head) -> None:
    replica, (ingress,) = cluster.replica_of("mine"), cluster.processes("ray::ServeReplica:phi3:ingress")
    streamed = {"prompt": PROMPT, "stream": True, "generate_kwargs": {"max_new_tokens": 1500, **ENDLESS}}
    beams = {**streamed, "stream": False, "generate_kwargs": {"max_new_tokens": 1500, "num_beams": 3, **ENDLESS}}
    plain = {**streamed, "stream": False}

    async def leave(body: dict[str, Any], stays_s: float) -> None:
        request = chat_request(cluster.url, body)
        reader, writer = await asyncio.open_connection(request.host, request.port)
        writer.write(request.data)
        if body["stream"]:
            await reader.readline()
        await asyncio.sleep(stays_s)
        writer.close()

    async def wave(number: int) -> None:
        bodies = [(streamed, plain, beams)[(number + i) % 3] for i in range(50)]
        await asyncio.gather(*(leave(body, 0.02 * (i % 10)) for i, body in enumerate(bodies)))

    def used() -> tuple[int, int, int, int]:
        return replica.num_threads(), replica.num_fds(), ingress.num_threads(), ingress.num_fds()

    for number in range(4):  # connections and threads that are kept for the next one
        asyncio.run(wave(number))
    cluster.call("/chat", SHORT)
    time.sleep(1)
    before = used()
    for number in range(20):
        asyncio.run(wave(number))
    time.sleep(1)
    load = cluster.load_of("mine")
    assert (load["num_running"], load["num_waiting"], load["num_blocks_used"]) == (0, 0, 0)
    assert all(now <= then + 5 for now, then in zip(used(), before, strict=True)), (before, used())
    assert cluster.call("/chat", SHORT).status == 200
