"""Which batches run, and in which order."""

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from phi3_serve.batch import worker
from phi3_serve.batch.batch_store import BatchRequest
from phi3_serve.batch.directory import BatchDirectory
from phi3_serve.batch.lines import Reply, RequestLine
from phi3_serve.batch.object_id import BATCH_ID
from phi3_serve.batch.validation import InputLimits
from phi3_serve.batch.worker import MOST_BATCHES, BatchWorker

pytestmark = pytest.mark.slow

LIMITS = InputLimits(max_lines=10, max_line_bytes=10_000)


def new_batch(directory: BatchDirectory, owner: str | None, expires_in_s: int = 100) -> BatchRequest:
    stores = directory.of(owner)
    with stores.files.new() as file:
        file.write(json.dumps({"custom_id": "a", "method": "POST", "url": "/chat", "body": {}}).encode())
        kept = stores.files.keep(file, filename="in", purpose="batch", expires_after_s=None)
    now = int(time.time())
    request = BatchRequest(BATCH_ID.new(), "/chat", kept.id, now, now + expires_in_s)
    stores.batches.create(request)
    return request


@dataclass
class Run:
    """A worker, what it sends, and the event without which nothing is answered."""

    directory: BatchDirectory
    known: tuple[str | None, ...]
    sent: list[str | None] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, owner: str | None, line: RequestLine) -> Reply:
        self.sent.append(owner)
        await self.let_go.wait()
        return Reply(200, {})

    async def for_a_while(self, seconds: float) -> None:
        work = BatchWorker(
            self.directory, self.send, limits=LIMITS, keep_s=1000, may_run=lambda owner: owner in self.known
        )
        task = asyncio.create_task(work.run())
        await asyncio.sleep(seconds)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_each_owner_has_its_turn(tmp_path: Path) -> None:
    directory = BatchDirectory(tmp_path)
    for owner in ["alice"] * 20 + ["bob"] * 2:
        new_batch(directory, owner)

    async def check() -> None:
        run = Run(directory, ("alice", "bob"))
        await run.for_a_while(1.5)
        assert len(run.sent) == MOST_BATCHES
        assert run.sent.count("bob") == 2

    asyncio.run(check())


def test_what_nobody_may_run_waits_and_expires(tmp_path: Path) -> None:
    directory = BatchDirectory(tmp_path)
    waiting, late = new_batch(directory, "eve"), new_batch(directory, "eve", expires_in_s=-1)

    async def check() -> None:
        run = Run(directory, ("alice",))
        await run.for_a_while(2)
        assert run.sent == []

    asyncio.run(check())
    batches = directory.of("eve").batches
    assert (batches.progress(waiting.id).status, batches.progress(late.id).status) == ("validating", "expired")


def test_a_batch_that_cannot_go_on_leaves_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = BatchDirectory(tmp_path)
    broken, good = [new_batch(directory, None) for _ in range(MOST_BATCHES)], new_batch(directory, None)
    batches = directory.of(None).batches
    for each in broken:
        batches.output(each.id).mkdir()

    async def check() -> None:
        run = Run(directory, (None,))
        run.let_go.set()
        await run.for_a_while(2)

    asyncio.run(check())
    assert batches.progress(good.id).status == "completed"
    assert {batches.progress(each.id).status for each in broken} == {"in_progress"}
    for each in broken:
        assert caplog.text.count(f"batch {each.id} cannot go on; it is tried again in 30 s") == 1


@pytest.mark.parametrize("name", ["request.json", "progress.json"])
def test_a_damaged_record_leaves_the_others_alone(tmp_path: Path, name: str) -> None:
    directory = BatchDirectory(tmp_path)
    damaged, good = [new_batch(directory, None) for _ in range(MOST_BATCHES)], new_batch(directory, None)
    batches = directory.of(None).batches
    for each in damaged:
        (batches.output(each.id).parent / name).write_text('{"problems": [{}]}')

    async def check() -> None:
        run = Run(directory, (None,))
        run.let_go.set()
        await run.for_a_while(3)

    asyncio.run(check())
    assert batches.progress(good.id).status == "completed"
    found = {batches.request(each.id) for each in damaged}
    assert found == ({None} if name == "request.json" else set(damaged))


def test_a_directory_may_be_away_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "RETRY_INTERVAL_S", 0.2)
    (tmp_path / "mount").write_text("")
    directory = BatchDirectory(tmp_path / "mount" / "batches")

    async def check() -> None:
        run = Run(directory, (None,))
        run.let_go.set()
        asyncio.get_running_loop().call_later(1, (tmp_path / "mount").unlink)
        asyncio.get_running_loop().call_later(1.1, new_batch, directory, None)
        await run.for_a_while(4)
        assert run.sent == [None]

    asyncio.run(check())
    assert "batches cannot go on" in caplog.text


def test_old_batches_are_forgotten(tmp_path: Path) -> None:
    directory = BatchDirectory(tmp_path)
    old, new = new_batch(directory, None, expires_in_s=-2000), new_batch(directory, None, expires_in_s=-1)

    async def run_twice() -> None:
        for _ in range(2):  # the sweep comes at the start
            run = Run(directory, (None,))
            await run.for_a_while(1.5)

    asyncio.run(run_twice())
    batches = directory.of(None).batches
    assert (batches.request(old.id), batches.request(new.id)) == (None, new)
