"""Files and batches in a directory: what is there, what is left over, who owns it."""

import os
import threading
import time
from pathlib import Path

import pytest

from phi3_serve.batch import json_file
from phi3_serve.batch.batch_store import BatchRequest, BatchStore, Problem, Progress
from phi3_serve.batch.directory import BatchDirectory
from phi3_serve.batch.file_store import FileStore, StoredFile
from phi3_serve.batch.object_id import BATCH_ID, FILE_ID, page

TWO_DAYS_S = 2 * 86_400


def keep(files: FileStore, content: bytes = b"abc", expires_after_s: int | None = None) -> StoredFile:
    with files.new() as file:
        file.write(content)
        return files.keep(file, filename="a", purpose="batch", expires_after_s=expires_after_s)


def test_a_file_is_there_once_it_is_kept(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    with files.new() as file:
        file.write(b"lost")
        assert files.ids() == []
    kept = keep(files, b"abc")
    assert files.get(kept.id) == kept
    assert (kept.num_bytes, files.content(kept.id).read_bytes()) == (3, b"abc")
    files.delete(kept.id)
    files.delete(kept.id)
    assert files.get(kept.id) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "id", ["", "..", "file-", "../worker", f"file-{'0' * 23}/", f"file-{'g' * 24}", "batch_" + "0" * 24]
)
def test_what_is_no_id_is_no_path(tmp_path: Path, id: str) -> None:
    json_file.write(tmp_path / "worker.json", {})
    assert FileStore(tmp_path / "files").get(id) is None
    assert BatchStore(tmp_path / "batches").request(id.replace("batch_", "file-")) is None


def test_what_is_too_old_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    files = FileStore(tmp_path)
    fresh, old, used = keep(files), keep(files, expires_after_s=-1), keep(files, expires_after_s=-1)
    assert files.get(old.id) is None
    left_over = [tmp_path / f"{FILE_ID.new()}.part", tmp_path / f"{FILE_ID.new()}.jsonl", tmp_path / ".file-1.json.2"]
    new_left_over = tmp_path / f"{FILE_ID.new()}.part"
    for path in (*left_over, new_left_over):
        path.write_bytes(b"")
    for path in left_over:
        os.utime(path, (time.time() - TWO_DAYS_S,) * 2)
    files.sweep(lambda id: id == used.id)
    assert set(files.ids()) == {fresh.id, used.id}
    assert not any(path.exists() for path in left_over)
    assert new_left_over.exists()


def test_a_batch_is_read_as_it_was_written(tmp_path: Path) -> None:
    batches = BatchStore(tmp_path)
    request = BatchRequest(BATCH_ID.new(), "/v1/responses", FILE_ID.new(), 1, 2, {"a": "b"}, 3600)
    batches.create(request)
    assert (batches.ids(), batches.request(request.id)) == ([request.id], request)
    assert batches.progress(request.id) == Progress()
    progress = Progress("failed", times={"failed": 3}, problems=[Problem("c", "m", "p", 7)])
    batches.save(request.id, progress)
    assert batches.progress(request.id) == progress
    assert batches.cancelled_at(request.id) is None
    batches.cancel(request.id, 5)
    batches.cancel(request.id, 6)
    assert batches.cancelled_at(request.id) == 5
    batches.delete(request.id)
    assert not list(tmp_path.iterdir())


def test_what_a_later_version_has_written_is_read(tmp_path: Path) -> None:
    files, batches = FileStore(tmp_path / "files"), BatchStore(tmp_path / "batches")
    kept, request = keep(files), BatchRequest(BATCH_ID.new(), "/v1/responses", FILE_ID.new(), 1, 2)
    batches.create(request)
    batches.save(request.id, Progress(problems=[Problem("c", "m")]))
    for path in (p for p in tmp_path.rglob("*.json")):
        content = json_file.read(path)
        assert content is not None
        for problem in content.get("problems", ()):
            problem["new"] = 1
        json_file.write(path, {**content, "new": 1})
    assert files.get(kept.id) == kept
    assert batches.request(request.id) == request
    assert batches.progress(request.id) == Progress(problems=[Problem("c", "m")])


def test_a_file_is_in_use_until_its_batch_has_ended(tmp_path: Path) -> None:
    batches = BatchStore(tmp_path)
    request = BatchRequest(BATCH_ID.new(), "/v1/responses", FILE_ID.new(), 1, 2)
    batches.create(request)
    assert batches.uses(request.input_file_id) == request.id
    assert batches.uses(FILE_ID.new()) is None
    batches.save(request.id, Progress("completed"))
    assert batches.uses(request.input_file_id) is None


def test_no_owner_has_the_place_of_another_one(tmp_path: Path) -> None:
    directory = BatchDirectory(tmp_path)
    names = [None, "no-key", "..", "key-a", "a"]
    for number, name in enumerate(names):
        keep(directory.of(name).files, b"a" * number)
    assert [len(directory.of(name).files.ids()) for name in names] == [1] * 5
    assert len(set(directory.owners())) == 5
    assert set(directory.owners()) == set(names)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/files")} == {0o700}
    contents = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert directory.num_bytes() == contents


def test_one_process_has_the_lock(tmp_path: Path) -> None:
    directory = BatchDirectory(tmp_path / "made")
    with directory.locked() as first, directory.locked() as second:
        assert (first, second) == (True, False)
    with directory.locked() as third:
        assert third


def test_a_reader_finds_a_whole_file(tmp_path: Path) -> None:
    path, is_over = tmp_path / "a.json", threading.Event()
    json_file.write(path, {"a": []})

    def write() -> None:
        number = 0
        while not is_over.is_set():
            json_file.write(path, {"a": list(range(number % 1000))})
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            content = json_file.read(path)
            assert content is not None
            assert content["a"] == list(range(len(content["a"])))
    finally:
        is_over.set()
        writer.join()
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_pages_do_not_move_when_something_is_made_or_deleted() -> None:
    ids = [FILE_ID.new() for _ in range(6)]
    assert ids == sorted(ids)
    first = page(ids, after=None, limit=2)
    assert (first.ids, first.has_more) == (ids[:3:-1], True)
    newer = [*ids, FILE_ID.new()]
    newer.remove(first.ids[-1])
    second = page(newer, after=first.ids[-1], limit=4)
    assert (second.ids, second.has_more) == (ids[3::-1], False)
    assert page(ids, after=ids[1], limit=2, newest_first=False).ids == ids[2:4]
