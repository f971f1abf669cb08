"""A server that is killed while it runs a batch, and one that gets a file larger than its memory should grow."""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2
import pytest

from phi3_serve.launch.proxy import free_port
from tests.api.batches.asking import chat, line, lines_of, sdk, start, until

ROOT = Path(__file__).parents[3]
NUM_LINES = 400
Start = Callable[[], AbstractContextManager[tuple[subprocess.Popen[bytes], str]]]


@pytest.fixture
def start_server(checkpoint: Path, tmp_path: Path) -> Start:
    """Starts a server on the same directory each time."""

    @contextlib.contextmanager
    def started() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
        port = free_port()
        command = [sys.executable, "-m", "tests.api.batches.server", str(port), str(checkpoint), str(tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT)
        url = f"http://127.0.0.1:{port}"
        try:
            end = time.monotonic() + 90
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if httpx2.get(f"{url}/health").status_code == 200:
                        break
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.2)
            yield process, url
        finally:
            process.kill()
            process.wait()

    return started


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(start_server: Start, tmp_path: Path) -> None:
    lines = [line(f"request-{number}", chat(number, max_tokens=20)) for number in range(NUM_LINES)]
    with start_server() as (process, url):
        batch = start(sdk(url), lines)
        (output,) = until_exists(tmp_path, "output.jsonl")
        until_lines(output, 40)
        process.kill()
        process.wait()
    before = output.read_bytes()
    num_before = before.count(b"\n")
    assert 40 <= num_before < NUM_LINES
    with start_server() as (process, url):
        until_lines(output, num_before + 40)
        process.kill()
    with start_server() as (_, url):
        client = sdk(url)
        done = until(client, batch, seconds=120)
        assert done.status == "completed"
        assert done.request_counts is not None
        assert done.request_counts.model_dump() == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
        content = client.files.content(done.output_file_id or "").content
        assert content.startswith(before[: before.rindex(b"\n") + 1])
        answers = lines_of(client, done.output_file_id)
        assert Counter(each["custom_id"] for each in answers) == Counter(each["custom_id"] for each in lines)
        by_id = {each["custom_id"]: each["response"]["body"]["choices"] for each in answers}
        for number in (0, NUM_LINES // 2, NUM_LINES - 1):
            said = httpx2.post(f"{url}/v1/chat/completions", json=chat(number, max_tokens=20)).json()
            assert by_id[f"request-{number}"] == said["choices"]


def until_exists(directory: Path, name: str) -> list[Path]:
    end = time.monotonic() + 60
    while not (found := list(directory.rglob(name))):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def until_lines(path: Path, count: int) -> None:
    end = time.monotonic() + 60
    while path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_large_file_is_not_held_in_memory(start_server: Start, tmp_path: Path) -> None:
    size = 150_000_000
    large = tmp_path / "large.jsonl"
    with large.open("wb") as file:
        file.truncate(size)
    with start_server() as (process, url):
        client = sdk(url)
        before = peak_bytes(process)
        with large.open("rb") as file:
            made = client.files.create(file=file, purpose="batch")
        assert made.bytes == size
        batch = client.batches.create(input_file_id=made.id, endpoint="/v1/completions", completion_window="24h")
        failed = until(client, batch)
        assert failed.errors is not None
        assert failed.errors.data is not None
        assert [(error.line, error.code) for error in failed.errors.data] == [(1, "line_too_long")]
        with client.files.with_streaming_response.content(made.id) as response:
            assert sum(map(len, response.iter_bytes())) == size
        assert peak_bytes(process) - before < 64_000_000


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    """The most memory that ``process`` ever had."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (peak,) = [row.split()[1] for row in status.splitlines() if row.startswith("VmHWM:")]
    return 1024 * int(peak)
