"""Batches while parts of the server end. On a real Ray cluster."""

import json
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from phi3_serve.api.keys import hash_of
from tests.api.batches.asking import chat, line, lines_of, sdk, start, until
from tests.serving import cluster
from tests.serving.cluster import BIN, Head, serve_config
from tests.serving.test_faults import until as until_it_is

pytestmark = pytest.mark.cluster

NUM_LINES = 300


def config(head: Head, checkpoint: Path, directory: Path) -> dict[str, Any]:
    args = {
        "models": [{"name": "mine", "source": str(checkpoint), "device": "cpu", "num_cpus": 0.5}],
        "http": {"num_cpus": 0.25, "replicas": 2},
        "batches": {"directory": str(directory)},
    }
    keys = {"auth": {"keys": [{"name": "alice", "hash": hash_of("alice")}]}}
    return serve_config(head.port, args, deployments=[{"name": "ingress", "user_config": keys}])


def worker(head: Head, directory: Path) -> psutil.Process | None:
    """The ingress that runs the batches."""
    lock = str(directory / "worker.lock")
    holders = [each for each in head.processes("ray::ServeReplica:phi3:ingress") if is_locked_by(each, lock)]
    return holders[0] if holders else None


def is_locked_by(process: psutil.Process, path: str) -> bool:
    locks = [row.split() for row in Path("/proc/locks").read_text().splitlines()]
    inode = str(Path(path).stat().st_ino)
    return any(row[1] == "FLOCK" and row[4] == str(process.pid) and row[5].endswith(f":{inode}") for row in locks)


@pytest.mark.slow
def test_a_batch_outlives_its_ingress_its_replica_and_the_application(
    head: Head, checkpoint: Path, tmp_path: Path
) -> None:
    """The key is in ``user_config``, which the ingress gets a moment after its start."""
    directory = tmp_path / "batches"
    head.deploy(config(head, checkpoint, directory))
    client = sdk(head.url, "alice")
    until_it_is(lambda: client.files.list().data == [], 30)
    lines = [line(f"{n}", {**chat(n, max_tokens=40), "model": "mine"}) for n in range(NUM_LINES)]
    batch = start(client, lines)
    until_answered(directory, 20)

    first = worker(head, directory)
    assert first is not None
    first.kill()
    until_it_is(lambda: (now := worker(head, directory)) is not None and now.pid != first.pid, 60)
    until_answered(directory, 60)

    head.replica_of("mine").kill()
    until_it_is(lambda: len(head.processes("ray::ServeReplica:phi3:mine")) == 1, 60)
    until_answered(directory, 100)

    head.clear()
    assert 100 <= num_answered(directory) < NUM_LINES
    head.deploy(config(head, checkpoint, directory))
    until_it_is(lambda: client.batches.retrieve(batch.id).status == "completed", 180)
    done = until(client, batch)
    answers = lines_of(client, done.output_file_id)
    assert Counter(each["custom_id"] for each in answers) == Counter(f"{n}" for n in range(NUM_LINES))
    assert done.error_file_id is None


def num_answered(directory: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in directory.rglob("output.jsonl"))


def until_answered(directory: Path, count: int) -> None:
    until_it_is(lambda: num_answered(directory) >= count, 90)


@pytest.mark.slow
def test_the_command_starts_a_server_and_ends_it(tmp_path: Path) -> None:
    args = {"models": [{"name": "phi-3-tiny", "num_cpus": 0.5}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(serve_config(1, args)))
    command = [str(BIN / "phi3-serve"), "batch", "examples/questions.jsonl", str(tmp_path / "answers.jsonl")]
    command += ["--url", "http://127.0.0.1:1", "--serve", str(tmp_path / "config.yaml")]
    cluster.STARTED.append(command)
    process = subprocess.Popen(command, cwd=cluster.ROOT, stderr=subprocess.PIPE, text=True)
    started: set[psutil.Process] = set()
    try:
        with suppress(psutil.NoSuchProcess):
            while process.poll() is None:
                started |= set(psutil.Process(process.pid).children(recursive=True))
                time.sleep(0.2)
        _, told = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 1, told  # one request is refused
    assert "No server listens at http://127.0.0.1:1. One starts with" in told
    answers = {each["custom_id"]: each["response"] for each in map(json.loads, (tmp_path / "answers.jsonl").open())}
    assert "632" in answers["sum"]["body"]["choices"][0]["message"]["content"]
    assert len(answers) == 4
    assert len(started) > 5
    _, alive = psutil.wait_procs(list(started), timeout=15)
    assert alive == []


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(serve_config(1, {"modles": []})))
    command = [str(BIN / "phi3-serve"), "batch", "examples/questions.jsonl", str(tmp_path / "answers.jsonl")]
    command += ["--url", "http://127.0.0.1:1", "--serve", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=cluster.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "args: unknown key `modles`; did you mean `models`?" in done.stderr
    assert "Traceback" not in done.stderr
