"""Loading: from a directory and from a Hub, with progress in the log, in the asked-for dtype."""

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import Phi3ForCausalLM

from phi3_serve.engine import loader
from phi3_serve.errors import CheckpointError
from phi3_serve.observability import progress

REPOSITORY, REVISION = "microsoft/Phi-3-test-instruct", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The two answers of a model hub that a snapshot download needs, over one directory."""

    directory: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith(f"/api/models/{REPOSITORY}/revision/{REVISION}"):
            files = [{"rfilename": p.name} for p in self.directory.iterdir()]
            self._send(json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": files}).encode())
        elif self.path.startswith(f"/api/models/{REPOSITORY}/tree/{REVISION}"):
            entries: list[dict[str, object]] = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": self._etag(p)}
                for p in self.directory.iterdir()
            ]
            self._send(json.dumps(entries).encode())
        elif self.path.startswith(f"/{REPOSITORY}/resolve/{REVISION}/"):
            path = self.directory / self.path.rsplit("/", 1)[-1].split("?")[0]
            self._send(path.read_bytes(), etag=self._etag(path)) if path.is_file() else self._send(b"", status=404)
        else:
            self._send(b'{"error": "Repository not found"}', status=404)

    do_HEAD = do_GET

    @staticmethod
    def _etag(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def _send(self, body: bytes, status: int = 200, etag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound" if "resolve" in self.path else "RepoNotFound")
        if etag is not None:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("HubHere", (Hub,), {"directory": checkpoint, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_hub_source_is_fetched_at_its_revision_with_progress(
    hub: type[Hub], checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "phi3_serve"):
        directory = loader.fetch("mine", REPOSITORY, REVISION)
    assert {p.name for p in directory.iterdir()} == {p.name for p in checkpoint.iterdir()}
    assert (directory / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    lines = [r.getMessage() for r in caplog.records if "downloading" in r.getMessage()]
    assert lines[-1].startswith(f"mine: downloading {REPOSITORY}: 100 % (")
    of_the_repository = [path for path in hub.asked if REPOSITORY in path]
    assert len(of_the_repository) > 5
    assert all(f"/{REVISION}" in path for path in of_the_repository)


def test_a_fetched_source_is_not_fetched_again(hub: type[Hub]) -> None:
    first = loader.fetch("mine", REPOSITORY, REVISION)
    hub.asked.clear()
    assert loader.fetch("mine", REPOSITORY, REVISION) == first
    assert not [path for path in hub.asked if path.endswith(".safetensors")]


def test_a_repository_that_is_not_there_is_one_line(hub: type[Hub]) -> None:
    with pytest.raises(CheckpointError) as caught:
        loader.fetch("mine", "nobody/nothing", REVISION)
    assert caught.value.message.startswith(f"nobody/nothing: cannot be fetched at revision {REVISION}: ")
    assert "\n" not in caught.value.message


def test_offline_without_the_files_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        loader.fetch("mine", REPOSITORY, REVISION)
    assert caught.value.message.startswith(f"{REPOSITORY}: cannot be fetched at revision {REVISION}: ")
    assert "\n" not in caught.value.message


def test_loading_tells_bytes_and_percent(
    checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, "phi3_serve"):
        loader.load("mine", str(checkpoint), None, device="cpu", dtype="auto")
    lines = [r.getMessage() for r in caplog.records if "loading weights" in r.getMessage()]
    percents = [int(line.split(": ")[2].split(" %")[0]) for line in lines]
    assert len(lines) > 3
    assert percents == sorted(percents)
    assert percents[0] < 50
    assert percents[-1] == 100


@pytest.mark.parametrize(
    ("dtype", "expected"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_dtype(checkpoint: Path, dtype: str, expected: torch.dtype) -> None:
    loaded = loader.load("mine", str(checkpoint), None, device="cpu", dtype=dtype)
    assert {p.dtype for p in loaded.model.parameters()} == {expected}


@pytest.fixture
def t4(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a T4; nothing can be loaded onto it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))


@pytest.mark.usefixtures("t4")
def test_a_gpu_without_bfloat16_gets_float16(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    asked: list[object] = []

    def from_pretrained(*_: object, dtype: str, **__: object) -> None:
        asked.append(dtype)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Phi3ForCausalLM, "from_pretrained", from_pretrained)
    shutil.copytree(checkpoint, half := tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    with caplog.at_level(logging.INFO, "phi3_serve"):
        for dtype in ("auto", "float32"):
            with pytest.raises(CheckpointError, match="does not fit into the memory of cuda"):
                loader.load("mine", str(half), None, device="cuda", dtype=dtype)
    assert asked == ["float16", "float32"]
    said = "mine: float16 instead of bfloat16, which Tesla T4 (compute capability 7.5) does not have"
    assert [record.getMessage() for record in caplog.records].count(said) == 1


@pytest.mark.usefixtures("t4")
def test_bfloat16_is_refused_where_the_gpu_has_none(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        loader.load("mine", str(checkpoint), None, device="cuda", dtype="bfloat16")
    assert caught.value.message == (
        "mine: dtype is bfloat16, but Tesla T4 (compute capability 7.5) has no bfloat16; "
        "allowed are float16, float32 and auto"
    )


def test_the_checkpoints_own_generation_config_is_read(checkpoint: Path) -> None:
    loaded = loader.load("mine", str(checkpoint), None, device="cpu", dtype="auto")
    config = json.loads((checkpoint / "generation_config.json").read_text())
    assert list(loaded.defaults.eos_token_ids()) == config["eos_token_id"]
    assert len(config["eos_token_id"]) == 3
    assert loaded.context_length == 2048
