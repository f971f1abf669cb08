"""OpenAI's files and batches with the official SDK, over a real engine."""

import json
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from starlette.testclient import TestClient

from phi3_serve.api.app import create_app
from phi3_serve.api.batches import batch_routes
from phi3_serve.api.keys import hash_of
from phi3_serve.batch.batch_run import MOST_AT_ONCE
from phi3_serve.config.app import AppConfig
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.errors import ModelUnavailable, ReplicaLost
from phi3_serve.launch.proxy import free_port
from tests.api.batches.asking import CHAT, chat, jsonl, line, lines_of, sdk, start, until
from tests.support import ENDLESS, LocalBackend, engine_of, local_replica

pytestmark = pytest.mark.slow

FOREVER = {"max_tokens": 3000, **ENDLESS}


def with_batches(config: AppConfig, directory: Path, **more: Any) -> AppConfig:
    batches = {"directory": str(directory), **more.pop("batches", {})}
    return AppConfig.model_validate({**config.model_dump(), "batches": batches, **more})


@pytest.fixture
def url(backend: LocalBackend, config: AppConfig, tmp_path: Path, serve_app: Callable[[FastAPI], str]) -> str:
    return serve_app(create_app(backend, with_batches(config, tmp_path)))


@pytest.fixture
def openai_client(url: str) -> OpenAI:
    return sdk(url)


BODIES: dict[str, Callable[[int], dict[str, Any]]] = {
    CHAT: chat,
    "/v1/completions": lambda n: {"model": "tested", "prompt": f"Word {n}", "temperature": 0, "max_tokens": 1 + n % 3},
    "/v1/responses": lambda n: {"model": "tested", "input": f"Word {n}", "temperature": 0, "max_output_tokens": 16},
}


@pytest.mark.parametrize("model", [["tested"], {"name": "tested"}, 5])
def test_a_model_that_is_no_text_is_refused(openai_client: OpenAI, model: Any) -> None:
    done = until(openai_client, start(openai_client, [line("a", chat(1, model=model)), line("b", chat(2))]))
    assert (done.status, done.output_file_id is not None) == ("completed", True)
    (refused,) = lines_of(openai_client, done.error_file_id)
    assert refused["response"]["status_code"] == 400
    assert refused["response"]["body"]["error"]["param"] == "model"


def test_a_directory_that_hangs_holds_up_no_other_request(
    openai_client: OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, let_go, fsync = threading.Event(), threading.Event(), os.fsync

    def fsync_or_hang(file: int) -> None:
        if threading.current_thread().name == "phi3-batches":
            hangs.set()
            let_go.wait(60)
        fsync(file)

    monkeypatch.setattr("phi3_serve.batch.json_file.os.fsync", fsync_or_hang)
    batch = start(openai_client, [line(str(number), chat(number)) for number in range(3)])
    assert hangs.wait(20)
    for number in range(3):
        assert openai_client.with_options(timeout=10).chat.completions.create(**chat(number)).choices
    let_go.set()
    counts = until(openai_client, batch).request_counts
    assert counts is not None
    assert counts.completed == 3


@pytest.mark.parametrize("hanging", ["make", "list"])
def test_calls_for_files_that_hang_hold_up_no_other_request(
    openai_client: OpenAI, url: str, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    let_go = threading.Event()
    name = "phi3_serve.batch.file_store." + ("make_private" if hanging == "make" else "FileStore.ids")
    monkeypatch.setattr(name, lambda *_: let_go.wait(60) and [])

    def ask() -> int:
        if hanging == "make":
            files, form = {"file": ("a.jsonl", jsonl([line("a", chat(1))]))}, {"purpose": "batch"}
            return httpx2.post(f"{url}/v1/files", files=files, data=form, timeout=60).status_code
        return httpx2.get(f"{url}/v1/files", timeout=60).status_code

    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask) for _ in range(12)]
        try:
            time.sleep(0.5)
            assert httpx2.get(f"{url}/health", timeout=10).status_code == 200
            assert openai_client.with_options(timeout=10).models.list().data
            assert openai_client.with_options(timeout=10).chat.completions.create(**chat(1)).choices
            assert not any(one.done() for one in asked)
        finally:
            let_go.set()


@pytest.mark.parametrize("endpoint", BODIES)
def test_the_life_of_a_batch(openai_client: OpenAI, url: str, endpoint: str) -> None:
    bodies = [BODIES[endpoint](number) for number in range(30)]
    lines = [line(f"request-{number}", body, endpoint) for number, body in enumerate(bodies)]
    lines.append(line("wrong", {**bodies[0], "temperature": -1}, endpoint))
    lines.append(line("unknown", {**bodies[0], "model": "tasted"}, endpoint))

    file = openai_client.files.create(file=("questions.jsonl", jsonl(lines)), purpose="batch")
    assert (file.filename, file.bytes, file.purpose) == ("questions.jsonl", len(jsonl(lines)), "batch")
    assert openai_client.files.retrieve(file.id) == file
    assert openai_client.files.content(file.id).content == jsonl(lines)

    batch = openai_client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert (batch.status, batch.input_file_id, batch.endpoint) == ("validating", file.id, endpoint)
    assert batch.expires_at == batch.created_at + 86_400
    done = until(openai_client, batch)
    assert done.status == "completed"
    assert done.metadata == {"for": "a test"}
    assert done.errors is None
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 32, "completed": 30, "failed": 2}
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert times == sorted(time for time in times if time is not None)

    answers = {each["custom_id"]: each for each in lines_of(openai_client, done.output_file_id)}
    assert set(answers) == {f"request-{number}" for number in range(30)}
    for number in (0, 7, 29):
        answer = answers[f"request-{number}"]
        assert answer["id"].startswith("batch_req_")
        assert (answer["error"], answer["response"]["status_code"]) == (None, 200)
        assert answer["response"]["request_id"]
        said = httpx2.post(url + endpoint, json=bodies[number]).json()
        assert texts_of(answer["response"]["body"]) == texts_of(said)

    errors = {each["custom_id"]: each["response"] for each in lines_of(openai_client, done.error_file_id)}
    assert {name: error["status_code"] for name, error in errors.items()} == {"wrong": 400, "unknown": 404}
    assert errors["wrong"]["body"]["error"]["param"] == "temperature"

    usages = [each["response"]["body"]["usage"] for each in answers.values()]
    assert done.usage is not None
    assert done.usage.output_tokens == sum(
        usage.get("completion_tokens", usage.get("output_tokens")) for usage in usages
    )
    assert done.usage.total_tokens == sum(usage["total_tokens"] for usage in usages)

    assert done.output_file_id is not None
    output = openai_client.files.retrieve(done.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert openai_client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="There is no file"):
        openai_client.files.retrieve(file.id)
    assert openai_client.batches.retrieve(batch.id) == done


def texts_of(answer: dict[str, Any]) -> Any:
    return answer.get("choices") or [item["content"] for item in answer["output"]]


def test_a_file_with_wrong_lines_fails_and_nothing_is_sent(openai_client: OpenAI) -> None:
    lines = [
        json.dumps(line("a", chat(0))),
        "{",
        json.dumps({"custom_id": "b", "method": "POST", "url": CHAT}),
        json.dumps(line("a", chat(1))),
        json.dumps(line("c", chat(2), "/v1/completions")),
    ]
    failed = until(openai_client, start(openai_client, "\n".join(lines).encode()))
    assert failed.status == "failed"
    assert failed.failed_at is not None
    assert (failed.output_file_id, failed.error_file_id) == (None, None)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(error.line, error.code, error.param) for error in failed.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "missing_required_parameter", "body"),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "mismatched_url", "url"),
    ]
    assert failed.errors.data[2].message == "Line 4: `custom_id` 'a' is also that of line 1."


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty_file"), (b"\n \n", "empty_file"), (jsonl([line(f"{n}", {}) for n in range(6)]), "too_many_requests")],
)
def test_a_file_of_a_wrong_length_fails(
    backend: LocalBackend,
    config: AppConfig,
    tmp_path: Path,
    serve_app: Callable[[FastAPI], str],
    content: bytes,
    code: str,
) -> None:
    client = sdk(serve_app(create_app(backend, with_batches(config, tmp_path, batches={"max_requests": 5}))))
    failed = until(client, start(client, content))
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [error.code for error in failed.errors.data] == [code]


def test_a_cancelled_batch_keeps_its_answers(openai_client: OpenAI, backend: LocalBackend) -> None:
    lines = [line(f"short-{number}", chat(number)) for number in range(3)]
    lines += [line(f"long-{number}", chat(number, **FOREVER)) for number in range(100)]
    batch = start(openai_client, lines)
    while (until(openai_client, batch, "in_progress").request_counts or Counter()).completed < 3:  # type: ignore[union-attr]
        time.sleep(0.1)
    with pytest.raises(openai.BadRequestError, match="Wait for its end, or cancel it"):
        openai_client.files.delete(batch.input_file_id)
    cancelling = openai_client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    assert cancelling.cancelling_at is not None
    assert openai_client.batches.cancel(batch.id).cancelling_at == cancelling.cancelling_at
    done = until(openai_client, batch)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    answers = {each["custom_id"] for each in lines_of(openai_client, done.output_file_id)}
    assert {"short-0", "short-1", "short-2"} <= answers
    assert done.request_counts is not None
    assert done.request_counts.completed == len(answers)
    with pytest.raises(openai.BadRequestError, match="A batch with the status cancelled cannot be cancelled"):
        openai_client.batches.cancel(batch.id)
    wait_for(lambda: backend.num_requests == 0)


def test_a_batch_ends_with_its_window(openai_client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_routes, "COMPLETION_WINDOW_S", 3)
    lines = [line("short", chat(0)), *(line(f"long-{number}", chat(number, **FOREVER)) for number in range(80))]
    done = until(openai_client, start(openai_client, lines))
    assert done.status == "expired"
    assert done.expired_at is not None
    answered = {each["custom_id"] for each in lines_of(openai_client, done.output_file_id)}
    errors = lines_of(openai_client, done.error_file_id)
    assert "short" in answered
    assert answered | {each["custom_id"] for each in errors} == {each["custom_id"] for each in lines}
    assert len(answered) + len(errors) == len(lines)
    assert {(each["response"], each["error"]["code"]) for each in errors} == {(None, "batch_expired")}


def test_lists_have_pages(openai_client: OpenAI) -> None:
    made = [start(openai_client, [line("a", chat(0))]) for _ in range(5)]
    ids = [batch.id for batch in reversed(made)]
    first = openai_client.batches.list(limit=2)
    assert [batch.id for batch in first.data] == ids[:2]
    assert first.has_more
    assert [batch.id for batch in openai_client.batches.list(limit=2)] == ids  # the SDK asks for page after page
    assert [batch.id for batch in openai_client.batches.list(after=ids[3])] == ids[4:]
    for batch in made:
        until(openai_client, batch)
    files = [batch.input_file_id for batch in made]
    assert [file.id for file in openai_client.files.list(purpose="batch", limit=3, order="asc")] == files
    assert len(openai_client.files.list().data) == 10
    assert openai_client.files.list(purpose="vision").data == []


@pytest.mark.parametrize(
    ("path", "message", "param"),
    [
        (
            "/v1/batches?limit=0",
            "limit: Input should be greater than or equal to 1; allowed: whole number, at least 1, at most 100",
            "limit",
        ),
        (
            "/v1/batches?limit=101",
            "limit: Input should be less than or equal to 100; allowed: whole number, at least 1, at most 100",
            "limit",
        ),
        ("/v1/files?order=up", "order: Input should be 'asc' or 'desc'", "order"),
        ("/v1/files?after=batch_1", "`after` must be an id of this list, which begins with file-.", "after"),
    ],
)
def test_a_wrong_page_is_refused(url: str, path: str, message: str, param: str) -> None:
    refused = httpx2.get(url + path)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == message
    assert refused.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint: Input should be '/v1/chat/completions'", "endpoint"),
        ({"completion_window": "1h"}, "completion_window: Input should be '24h'", "completion_window"),
        ({"metadata": {"a" * 65: ""}}, "metadata", None),
        (
            {"metadata": {str(n): "" for n in range(17)}},
            "metadata: Dictionary should have at most 16 items",
            "metadata",
        ),
        ({"input_file_id": "file-1"}, "There is no file 'file-1'", "input_file_id"),
        ({"input_file_id": "../../x"}, "There is no file '../../x'", "input_file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds", None),
        ({"windwo": "24h"}, "`windwo` is not a field", "windwo"),
    ],
)
def test_a_wrong_batch_is_refused(url: str, fields: dict[str, Any], message: str, param: str | None) -> None:
    body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h", **fields}
    refused = httpx2.post(f"{url}/v1/batches", json=body)
    assert refused.status_code in (400, 404)
    error = refused.json()["error"]
    assert error["message"].startswith(message)
    assert param is None or error["param"] == param
    assert httpx2.get(f"{url}/v1/batches").json()["data"] == []


def test_answers_cannot_be_asked(openai_client: OpenAI) -> None:
    done = until(openai_client, start(openai_client, [line("a", chat(0))]))
    with pytest.raises(openai.BadRequestError, match='The purpose of the file must be "batch"'):
        openai_client.batches.create(input_file_id=done.output_file_id or "", endpoint=CHAT, completion_window="24h")


FILE = {"file": ("a.jsonl", b"{}")}


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({"files": FILE}, 400, '`purpose` is missing; it must be "batch".'),
        ({"files": FILE, "data": {"purpose": "vision"}}, 400, '`purpose` must be "batch"'),
        ({"files": {"purpose": (None, b"batch")}}, 400, "`file` is missing"),
        ({"files": [*FILE.items(), *FILE.items()], "data": {"purpose": "batch"}}, 400, "`file` is sent twice."),
        ({"files": FILE, "data": {"purpsoe": "batch"}}, 400, "`purpsoe` is not a field of this form; did you mean"),
        ({"files": FILE, "data": {"purpose": "b" * 2000}}, 400, "`purpose` has more than 1,024 bytes."),
        (
            {"files": FILE, "data": {"purpose": "batch", "expires_after[seconds]": "3600"}},
            400,
            '`expires_after[anchor]` must be "created_at".',
        ),
        (
            {"files": FILE, "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "1"}},
            400,
            "`expires_after[seconds]` must be a whole number from 3,600 to 2,592,000.",
        ),
        ({"json": {"purpose": "batch"}}, 400, "The Content-Type header must be multipart/form-data with a boundary"),
        (
            {"content": b"--x\r\nno form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "The body",
        ),
        (
            {"content": b"", "headers": {"Content-Type": f"multipart/form-data; boundary={'x' * 257}"}},
            400,
            "The body is not a multipart form: Boundary length 257",
        ),
        (
            {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
            400,
            "The body ends before the end of the multipart form.",
        ),
        ({"files": {"file": ("a", b"a" * 100_001)}, "data": {"purpose": "batch"}}, 413, "The file is larger than 100,000"),
        ({"files": {"file": ("a", b"a" * 999_999)}, "data": {"purpose": "batch"}}, 413, "The body is larger than 165,536"),
    ],
)  # fmt: skip
def test_a_wrong_upload_is_refused_and_leaves_nothing(
    backend: LocalBackend, config: AppConfig, tmp_path: Path, form: dict[str, Any], status: int, message: str
) -> None:
    with TestClient(create_app(backend, with_batches(config, tmp_path, batches={"max_file_bytes": 100_000}))) as client:
        refused = client.post("/v1/files", **form)
        assert refused.status_code == status
        assert refused.json()["error"]["message"].startswith(message)
        assert client.get("/v1/files").json()["data"] == []
    assert not list(tmp_path.rglob("file-*"))


def test_a_full_directory_takes_nothing_more(backend: LocalBackend, config: AppConfig, tmp_path: Path) -> None:
    limits = {"max_directory_bytes": 5_000}
    with TestClient(create_app(backend, with_batches(config, tmp_path, batches=limits))) as client:

        def upload(size: int) -> Any:
            return client.post("/v1/files", files={"file": ("a", b"a" * size)}, data={"purpose": "batch"})

        assert upload(6_000).status_code == 400
        file = upload(4_990).json()
        full = upload(20)
        assert full.status_code == 400
        assert "would have more than 5,000 bytes (batches.max_directory_bytes)" in full.json()["error"]["message"]
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        assert client.post("/v1/batches", json=body).json() == full.json()
        assert client.delete(f"/v1/files/{file['id']}").json()["deleted"]
        assert upload(4_000).status_code == 200


def test_uploads_at_the_same_time_fill_the_directory_together(
    backend: LocalBackend, config: AppConfig, tmp_path: Path, serve_app: Callable[[FastAPI], str]
) -> None:
    limit, size = 12_000_000, 9_000_000
    url = serve_app(create_app(backend, with_batches(config, tmp_path, batches={"max_directory_bytes": limit})))
    form: Any = {"files": {"file": ("a", b"a" * size)}, "data": {"purpose": "batch"}, "timeout": 60}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: httpx2.post(f"{url}/v1/files", **form), range(6)))
    assert {answer.status_code for answer in answers} <= {200, 400}
    kept = [file for file in tmp_path.rglob("file-*") if file.suffix in (".jsonl", ".part")]
    assert len(kept) == [answer.status_code for answer in answers].count(200) <= 1
    for answer in answers:
        if answer.status_code == 400:
            assert "batches.max_directory_bytes" in answer.json()["error"]["message"]


def test_only_the_user_of_the_server_opens_the_directory(
    backend: LocalBackend, config: AppConfig, tmp_path: Path
) -> None:
    root = tmp_path / "of" / "batches"
    with TestClient(create_app(backend, with_batches(config, root))) as client:
        form: Any = {"files": {"file": ("a", b"{}\n")}, "data": {"purpose": "batch"}}
        file = client.post("/v1/files", **form).json()
        body = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
        assert client.post("/v1/batches", json=body).status_code == 200
        directories = [root.parent, root, *(path for path in root.rglob("*") if path.is_dir())]
        assert len(directories) >= 5
        assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


def test_a_file_that_is_deleted_meanwhile_is_not_there(
    backend: LocalBackend, config: AppConfig, tmp_path: Path
) -> None:
    with TestClient(create_app(backend, with_batches(config, tmp_path))) as client:
        form: Any = {"files": {"file": ("a", b"{}\n")}, "data": {"purpose": "batch"}}
        id = client.post("/v1/files", **form).json()["id"]
        (content,) = tmp_path.rglob(f"{id}.jsonl")
        content.unlink()
        gone = client.get(f"/v1/files/{id}/content")
        assert gone.status_code == 404
        assert id in gone.json()["error"]["message"]


def test_a_directory_that_cannot_be_used_is_said(backend: LocalBackend, config: AppConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with TestClient(create_app(backend, with_batches(config, tmp_path / "file" / "in"))) as client:
        refused = client.post("/v1/files", files=FILE, data={"purpose": "batch"})
        assert refused.status_code == 503
        assert (
            "The directory of files and batches cannot be used: Not a directory" in refused.json()["error"]["message"]
        )


def test_without_a_directory_the_setting_is_named(client: TestClient) -> None:
    for path in ("/v1/files", "/v1/files/file-1", "/v1/files/file-1/content", "/v1/batches", "/v1/batches/batch_1"):
        refused = client.get(path)
        assert refused.status_code == 404
        assert "`batches.directory` of its config is not set" in refused.json()["error"]["message"]
    refused = client.post("/v1/files", files=FILE, data={"purpose": "batch"})
    assert "`batches.directory` of its config is not set" in refused.json()["error"]["message"]


def test_files_and_batches_belong_to_their_key(
    backend: LocalBackend, config: AppConfig, tmp_path: Path, serve_app: Callable[[FastAPI], str]
) -> None:
    keys = [{"name": name, "hash": hash_of(name), "max_parallel_requests": 1} for name in ("alice", "bob")]
    url = serve_app(create_app(backend, with_batches(config, tmp_path, auth={"keys": keys})))
    alice, bob = sdk(url, "alice"), sdk(url, "bob")
    batch = start(alice, [line(f"{number}", chat(number)) for number in range(10)])
    done = until(alice, batch)
    assert done.status == "completed"
    assert len(alice.files.list().data) == 2
    assert (bob.files.list().data, bob.batches.list().data) == ([], [])
    for call in (
        lambda: bob.batches.retrieve(batch.id),
        lambda: bob.batches.cancel(batch.id),
        lambda: bob.files.retrieve(batch.input_file_id),
        lambda: bob.files.content(done.output_file_id or ""),
        lambda: bob.files.delete(batch.input_file_id),
        lambda: bob.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    with pytest.raises(openai.AuthenticationError):
        sdk(url, "eve").files.list()
    counted = httpx2.get(f"{url}/metrics", headers={"Authorization": "Bearer bob", "Accept": "text/plain"}).text
    assert 'phi3_serve_api_key_requests_total{api_key="alice",model_name="tested"} 10.0' in counted
    assert 'phi3_serve_batch_requests_total{model_name="tested",status="200"} 10.0' in counted
    assert "phi3_serve_num_batches_running 0.0" in counted


def test_a_batch_leaves_half_of_the_tokens_of_its_key(
    backend: LocalBackend, config: AppConfig, tmp_path: Path, serve_app: Callable[[FastAPI], str]
) -> None:
    keys = [{"name": "alice", "hash": hash_of("alice"), "tokens_per_minute": 3000}]
    url = serve_app(create_app(backend, with_batches(config, tmp_path, auth={"keys": keys})))
    client = sdk(url, "alice")
    bodies = [chat(number, max_tokens=40, **ENDLESS) for number in range(100)]
    batch = start(client, [line(f"{number}", body) for number, body in enumerate(bodies)])
    wait_for(lambda: num_answered(client, batch.id) >= 20)
    time.sleep(1)
    assert num_answered(client, batch.id) < 90
    for body in bodies[:3]:
        answer = httpx2.post(url + CHAT, json=body, headers={"Authorization": "Bearer alice"})
        assert answer.status_code == 200
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 1000
    client.batches.cancel(batch.id)
    assert until(client, batch).status == "cancelled"


def num_answered(client: OpenAI, id: str) -> int:
    counts = client.batches.retrieve(id).request_counts
    return 0 if counts is None else counts.completed


class Watched(LocalBackend):
    """Remembers how many requests it had at once, and can be told to fail."""

    def __init__(self, backend: LocalBackend) -> None:
        super().__init__(backend.replica)
        self.prompts: list[Any] = []
        self.most_at_once = 0
        self.failures: list[Exception] = []

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Done, None]:
        self.prompts.append(request.prompt)
        self.most_at_once = max(self.most_at_once, self.num_requests + 1)
        if self.failures:
            raise self.failures.pop()
        async for event in super().generate(request):
            yield event


def test_a_batch_takes_only_its_share(
    backend: LocalBackend, config: AppConfig, tmp_path: Path, serve_app: Callable[[FastAPI], str]
) -> None:
    watched = Watched(backend)
    watched.num_places = 6
    client = sdk(serve_app(create_app(watched, with_batches(config, tmp_path))))
    assert until(client, start(client, [line(f"{n}", chat(n)) for n in range(40)])).status == "completed"
    assert watched.most_at_once == 3
    watched.num_requests = 6  # of other clients
    batch = start(client, [line(f"{n}", chat(n)) for n in range(40)])
    until(client, batch, "in_progress")
    time.sleep(1)
    assert len(watched.prompts) == 40
    watched.num_requests = 4
    assert until(client, batch).status == "completed"
    assert watched.most_at_once <= 4 + 3


def test_what_passes_by_itself_is_no_answer(
    backend: LocalBackend,
    config: AppConfig,
    tmp_path: Path,
    serve_app: Callable[[FastAPI], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("phi3_serve.api.batches.sender.FAILURE_RETRY_S", 0.1)
    monkeypatch.setattr("phi3_serve.api.batches.sender.UNAVAILABLE_RETRY_S", 0.1)
    watched = Watched(backend)
    watched.failures = [
        ReplicaLost("The replica ended."),
        ModelUnavailable("It is loading.", 0.1),
        ModelUnavailable("No node can hold it."),
        RuntimeError("a fault"),
    ]
    client = sdk(serve_app(create_app(watched, with_batches(config, tmp_path))))
    done = until(client, start(client, [line(f"{n}", chat(n)) for n in range(4)]))
    assert done.request_counts is not None
    assert done.request_counts.completed == 4
    assert len(watched.prompts) == 8
    watched.failures = [ReplicaLost("The replica ended.") for _ in range(2)]
    done = until(client, start(client, [line("a", chat(0))]))
    (error,) = lines_of(client, done.error_file_id)
    assert error["response"]["status_code"] == 500


def test_lines_whose_adapter_is_broken_fail_and_leave_their_places(
    checkpoint: Path, tmp_path: Path, serve_app: Callable[[FastAPI], str]
) -> None:
    (broken := tmp_path / "broken").mkdir()
    (broken / "adapter_config.json").write_text('{"peft_type": "LORA"')
    offered = [{"name": "broken", "source": str(broken)}]
    replica = local_replica("tested", str(checkpoint), max_waiting=64)
    replica.reconfigure({"adapters": offered})
    model = {"name": "tested", "source": str(checkpoint), "device": "cpu", "adapters": offered}
    config = AppConfig.model_validate({"models": [model]})
    client = sdk(serve_app(create_app(LocalBackend(replica), with_batches(config, tmp_path / "batches"))))
    lines = [line(f"broken {n}", chat(n, model="tested:broken")) for n in range(MOST_AT_ONCE + 5)]
    done = until(client, start(client, [*lines, *(line(f"{n}", chat(n)) for n in range(5))]))
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 5, len(lines))
    errors = [each["response"]["body"]["error"] for each in lines_of(client, done.error_file_id)]
    assert {error["code"] for error in errors} == {"adapter_unavailable"}
    assert str(broken / "adapter_config.json") in errors[0]["message"]
    engine_of(replica).close()


def wait_for(is_so: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_of_two_servers_one_runs_the_batches_and_the_other_one_follows(
    backend: LocalBackend, config: AppConfig, tmp_path: Path
) -> None:
    both = [Watched(backend), Watched(backend)]
    servers, threads, clients = [], [], []
    for watched in both:
        port = free_port()
        app = create_app(watched, with_batches(config, tmp_path))
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_for(lambda server=server: server.started)  # type: ignore[misc]
        servers.append(server)
        threads.append(thread)
        clients.append(sdk(f"http://127.0.0.1:{port}"))
        time.sleep(1)  # the first one has the lock
    try:
        batches = [start(client, [line(f"{n}", chat(n)) for n in range(20)]) for client in clients]
        for batch, client in zip(batches, reversed(clients), strict=True):  # each server shows the batch of the other
            assert until(client, batch).status == "completed"
        assert [len(watched.prompts) for watched in both] == [40, 0]
        long = start(clients[1], [line(f"{n}", chat(n, max_tokens=200, **ENDLESS)) for n in range(100)])
        until(clients[1], long, "in_progress")
        wait_for(lambda: len(both[0].prompts) > 40)
        servers[0].should_exit = True
        threads[0].join()
        done = until(clients[1], long, seconds=120)
        assert done.status == "completed"
        assert both[1].prompts
        answers = Counter(each["custom_id"] for each in lines_of(clients[1], done.output_file_id))
        assert answers == Counter(f"{n}" for n in range(100))
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.should_exit = True
            thread.join()


def test_a_batch_waits_while_its_key_is_not_accepted(backend: LocalBackend, config: AppConfig, tmp_path: Path) -> None:
    """Keys of ``user_config`` come a moment after the start."""
    key = {"keys": [{"name": "alice", "hash": hash_of("alice")}]}
    with TestClient(create_app(backend, with_batches(config, tmp_path, auth=key))) as client:
        client.headers["Authorization"] = "Bearer alice"
        file = client.post("/v1/files", files={"file": ("a", jsonl([line("a", chat(0))]))}, data={"purpose": "batch"})
    other = {"keys": [{"name": "bob", "hash": hash_of("bob")}]}
    app = create_app(backend, with_batches(config, tmp_path, auth=key))
    client = TestClient(app, headers={"Authorization": "Bearer alice"})  # without a worker
    body = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = client.post("/v1/batches", json=body).json()
    with TestClient(create_app(backend, with_batches(config, tmp_path, auth=other))):
        time.sleep(1.5)
        assert client.get(f"/v1/batches/{batch['id']}").json()["status"] == "validating"
    with TestClient(create_app(backend, with_batches(config, tmp_path, auth=key))):
        wait_for(lambda: client.get(f"/v1/batches/{batch['id']}").json()["status"] == "completed")
