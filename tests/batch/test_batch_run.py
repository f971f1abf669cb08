"""A batch that is interrupted at any write goes on, and each request has exactly one answer in the end."""

import asyncio
import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from phi3_serve.batch.batch_run import BatchRun
from phi3_serve.batch.batch_store import BatchRequest
from phi3_serve.batch.directory import BatchDirectory, OwnStores
from phi3_serve.batch.lines import Reply, RequestLine
from phi3_serve.batch.object_id import BATCH_ID, FILE_ID
from phi3_serve.batch.output_file import OutputFile
from phi3_serve.batch.validation import InputLimits

LIMITS = InputLimits(max_lines=1000, max_line_bytes=10_000)
NUM_LINES = 12
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}


@pytest.fixture
def stores(tmp_path: Path) -> OwnStores:
    return BatchDirectory(tmp_path).of(None)


def new_batch(stores: OwnStores, expires_in_s: int = 100) -> BatchRequest:
    with stores.files.new() as file:
        for number in range(NUM_LINES):
            line = {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": {}}
            file.write(json.dumps(line).encode() + b"\n")
        kept = stores.files.keep(file, filename="in", purpose="batch", expires_after_s=None)
    now = int(time.time())
    request = BatchRequest(BATCH_ID.new(), "/v1/completions", kept.id, now, now + expires_in_s)
    stores.batches.create(request)
    return request


async def send(line: RequestLine) -> Reply:
    await asyncio.sleep(0)
    return Reply(200 if int(line.custom_id) % 4 else 400, {"usage": USAGE})


def run(request: BatchRequest, stores: OwnStores, send: Any = send) -> None:
    asyncio.run(BatchRun(request, stores, send, LIMITS, keep_s=1000).run())


def lines_of(stores: OwnStores, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    return [json.loads(raw) for raw in stores.files.content(file_id).read_bytes().splitlines()]


class Interrupted(BaseException):
    """The end of the process."""


@pytest.mark.parametrize("function", ["replace", "write", "unlink", "fsync"])
def test_a_process_may_end_before_every_change_of_a_file(
    stores: OwnStores, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """Before the first one, then before the second one, and so on, until a run needs no more of them."""
    for count in range(100):
        request = new_batch(stores)
        with monkeypatch.context() as patch:
            is_through = not interrupt(patch, function, count, lambda request=request: run(request, stores))
        run(request, stores)
        progress = stores.batches.progress(request.id)
        assert progress.status == "completed"
        answers, errors = lines_of(stores, progress.output_file_id), lines_of(stores, progress.error_file_id)
        assert Counter(each["custom_id"] for each in answers + errors) == Counter(f"{n}" for n in range(NUM_LINES))
        assert (progress.num_completed, progress.num_failed) == (len(answers), len(errors)) == (9, 3)
        assert progress.usage == {"input_tokens": 27, "cached_tokens": 9, "output_tokens": 18}
        assert len(stores.files.ids()) == 3 * (count + 1)
        if is_through:
            assert count > 0
            return
    raise AssertionError("it never got through")


def interrupt(patch: pytest.MonkeyPatch, function: str, count: int, work: Any) -> bool:
    """End ``work`` before the call number ``count`` of ``function``, if it gets so far. Then nothing is written any more."""
    calls, is_over = 0, False

    def counted(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls, is_over
            if is_over or calls >= count:
                is_over = True
                raise Interrupted
            calls += 1
            return real(*args, **kwargs)

        return call

    if function == "write":
        patch.setattr(OutputFile, "write", counted(OutputFile.write))
    elif function == "fsync":
        patch.setattr(os, "fsync", counted(os.fsync))
    else:
        patch.setattr(Path, function, counted(getattr(Path, function)))
    with suppress(Interrupted, BaseExceptionGroup):
        work()
    return is_over


def test_what_is_answered_is_not_asked_again(stores: OwnStores) -> None:
    request, asked = new_batch(stores), Counter[str]()

    async def send_some(line: RequestLine) -> Reply:
        if len(asked) == 5:
            raise OSError("the disk is gone")
        asked[line.custom_id] += 1
        return Reply(200, {})

    async def send_rest(line: RequestLine) -> Reply:
        asked[line.custom_id] += 1
        return Reply(200, {})

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        run(request, stores, send_some)
    assert stores.batches.progress(request.id).status == "in_progress"
    run(request, stores, send_rest)
    assert asked == Counter(f"{number}" for number in range(NUM_LINES))


def test_an_input_that_is_gone_ends_the_batch(stores: OwnStores) -> None:
    request = new_batch(stores)
    stores.files.delete(request.input_file_id)
    run(request, stores)
    progress = stores.batches.progress(request.id)
    assert progress.status == "failed"
    assert [problem.code for problem in progress.problems] == ["file_not_found"]


def test_an_ended_batch_is_left_alone(stores: OwnStores) -> None:
    request = new_batch(stores)
    run(request, stores)
    before = stores.batches.progress(request.id)
    run(request, stores, None)
    assert stores.batches.progress(request.id) == before


def test_a_batch_that_is_late_answers_with_what_it_has(stores: OwnStores) -> None:
    request = new_batch(stores, expires_in_s=-1)

    async def wait(line: RequestLine) -> Reply:
        await asyncio.sleep(60)
        raise AssertionError

    run(request, stores, wait)
    progress = stores.batches.progress(request.id)
    assert progress.status == "expired"
    assert progress.output_file_id is None
    errors = lines_of(stores, progress.error_file_id)
    assert {(each["response"], each["error"]["code"]) for each in errors} == {(None, "batch_expired")}
    assert len(errors) == NUM_LINES


@pytest.mark.parametrize("expires_in_s", [100, -1])
def test_a_damaged_line_is_answered_again(stores: OwnStores, expires_in_s: int) -> None:
    request = new_batch(stores, expires_in_s)
    progress = stores.batches.progress(request.id)
    progress.status, progress.num_total = "in_progress", NUM_LINES
    progress.output_file_id, progress.error_file_id = FILE_ID.new(), FILE_ID.new()
    stores.batches.save(request.id, progress)
    kept = b'{"custom_id": "1"}\n'
    stores.batches.output(request.id).write_bytes(kept + bytes(100) + b'\n{"custom_id": "2"}\n')
    run(request, stores)
    ended = stores.batches.progress(request.id)
    answers = [*lines_of(stores, ended.output_file_id), *lines_of(stores, ended.error_file_id)]
    assert answers[0] == {"custom_id": "1"}
    assert sorted(int(each["custom_id"]) for each in answers) == list(range(NUM_LINES))
    assert ended.status == ("completed" if expires_in_s > 0 else "expired")
