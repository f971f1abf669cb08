"""``phi3-serve fetch``, from a hub on this machine."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Phi3Config
from typer.testing import CliRunner, Result

from phi3_serve.catalogue import variant
from phi3_serve.cli import app
from phi3_serve.engine.adapters.reader import read_adapter
from phi3_serve.engine.source import open_source
from phi3_serve.fetch.hub_file import HubFile
from phi3_serve.fetch.lock import LOCK
from phi3_serve.observability.progress import Progress
from tests.hub import Hub, running_hub
from tests.oracle.adapters import save_adapter

NAME = "phi-3-mini-4k-instruct"
WEIGHTS = "model.safetensors"
NOBODY = "http://127.0.0.1:9"
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[tuple[type[Hub], str]]:
    found = variant(NAME)
    assert found is not None
    assert found.revision is not None
    with running_hub(checkpoint, repository=found.source, revision=found.revision) as running:
        yield running


@pytest.fixture
def run(hub: tuple[type[Hub], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in this process, with the Hub at ``endpoint``."""
    # the library itself tries again for half a minute
    no_waiting = SimpleNamespace(**{**vars(time), "sleep": lambda s: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", no_waiting)
    monkeypatch.setattr("huggingface_hub.file_download.time", no_waiting)

    def command(*args: str, endpoint: str = hub[1]) -> Result:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
        return CliRunner().invoke(app, ["fetch", *args, "--to", str(tmp_path / "weights")])

    return command


@pytest.mark.thorough
def test_it_downloads_as_a_command(hub: tuple[type[Hub], str], tmp_path: Path, checkpoint: Path) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub[1], "HF_HOME": str(tmp_path / "cache")}
    line = [sys.executable, "-m", "phi3_serve", "fetch", "Phi3-mini-4k", "--json", "--to", str(tmp_path)]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    directory = tmp_path / NAME
    assert result["directory"] == str(directory)
    assert set(result["downloaded"]) == {path.name for path in checkpoint.iterdir()}
    assert f"{NAME}: downloading microsoft/Phi-3-mini-4k-instruct: 100 % (" in done.stderr
    assert f"{NAME}: comparing with the hashes: 100 % (" in done.stderr
    sha256 = hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()
    assert {file["path"]: file["hash"] for file in result["files"]}[WEIGHTS] == sha256
    open_source(directory)  # a checkpoint for `source`


def test_it_mends_a_damaged_file_and_keeps_the_others(
    run: Callable[..., Result], hub: tuple[type[Hub], str], tmp_path: Path
) -> None:
    assert run(NAME).exit_code == 0
    weights = tmp_path / "weights" / NAME / WEIGHTS
    # other content of the same size and time, as after a bad copy or a bad disk
    damaged, times = bytearray(weights.read_bytes()), weights.stat()
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    refused = run(NAME, "--verify")
    assert refused.exit_code == 1
    assert f"{weights} has the sha256 " in refused.stderr

    hub[0].asked.clear()
    again = run(NAME)
    assert again.exit_code == 0, again.stderr
    assert "equal to their hashes; 1 of them were downloaded now" in again.stdout
    assert f"    source: {weights.parent}" in again.stdout
    assert [path.rsplit("/", 1)[-1] for path in hub[0].asked] == [WEIGHTS]
    assert run(NAME, endpoint=NOBODY).exit_code == 0  # nothing lacks, as in a pod that starts again
    assert run(NAME, "--verify", endpoint=NOBODY).exit_code == 0  # without the Hub


def test_it_goes_on_where_the_connection_broke(
    run: Callable[..., Result], hub: tuple[type[Hub], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000)
    hub[0].breaks_off_at = 100_500
    old = tmp_path / "weights" / NAME / WEIGHTS
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of another revision")
    broken = run(NAME)
    assert broken.exit_code == 3, broken.stderr
    assert "the Hub does not answer" in broken.stderr
    assert old.read_bytes() == b"of another revision"  # until the new file is complete
    hub[0].breaks_off_at = None
    hub[0].ranges.clear()
    assert run(NAME).exit_code == 0
    assert hub[0].ranges == ["bytes=100000-"]


def test_parts_of_no_use_do_no_harm(run: Callable[..., Result], checkpoint: Path, tmp_path: Path) -> None:
    weights = (checkpoint / WEIGHTS).read_bytes()
    parts = tmp_path / "weights" / NAME / ".unfinished"
    parts.mkdir(parents=True)
    (parts / ("0" * 64)).write_bytes(b"of another revision")
    (parts / hashlib.sha256(weights).hexdigest()).write_bytes(weights + b"more than the file has")
    done = run(NAME)
    assert done.exit_code == 0, done.stderr
    assert not parts.exists()


def test_two_at_once_are_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    directory = tmp_path / "weights" / NAME
    directory.mkdir(parents=True)
    with (directory / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = run(NAME)
    assert refused.exit_code == 3
    assert refused.stderr == f"{directory}: another fetch is running; wait for its end, or stop it\n"
    assert run(NAME).exit_code == 0  # the lock ended with its process


def test_what_arrives_damaged_is_told(
    run: Callable[..., Result], hub: tuple[type[Hub], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_damaged(handler: Hub, path: Path) -> None:
        content = path.read_bytes()
        handler._send(content[:-1] + b"?", etag=handler._etag(path))

    monkeypatch.setattr(hub[0], "_send_file", send_damaged)
    done = run(NAME)
    assert done.exit_code == 1
    assert "should have" in done.stderr
    assert done.stderr.endswith("The same command downloads it again.\n")


def test_a_hub_that_is_away_is_for_later(run: Callable[..., Result]) -> None:
    done = run(NAME, endpoint=NOBODY)
    assert done.exit_code == 3
    assert "the Hub does not answer" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_disk_without_room_is_told_before_the_download(
    run: Callable[..., Result], hub: tuple[type[Hub], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10_000, 9_000, 1_000))
    done = run(NAME)
    assert done.exit_code == 3
    assert "are needed, and 1.0 kB are free" in done.stderr
    assert not [path for path in hub[0].asked if "/resolve/" in path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phi-3-mini-5k-instruct", "MODEL: `phi-3-mini-5k-instruct` is not in the catalogue; did you mean `phi-3-mini-4k-instruct`?"),
        ("phi-3-tiny", "MODEL: phi-3-tiny is part of the package; there is nothing to download"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_refused(tmp_path: Path, name: str, message: str) -> None:
    result = CliRunner().invoke(app, ["fetch", NAME, name, "--to", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == f"{message}\n"


def test_what_was_not_fetched_cannot_be_verified(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", NAME, "--verify", "--to", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"{tmp_path}/{NAME}/fetched.json: No such file or directory; `phi3-serve fetch` writes this file\n"
    )


HALF = {"path": WEIGHTS, "size": 1, "algorithm": "sha256"}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "Invalid JSON: EOF"),
        ("[]", "Input should be an object"),
        ("{}", "revision: Field required"),
        ({"revision": "x"}, "files: Field required"),
        ({"revision": "x", "files": []}, "files: none is a .safetensors file"),
        ({"revision": "x", "files": [HALF]}, "files.0.hash: Field required"),
        ({"revision": "x", "files": [{**HALF, "hash": "0" * 40, "size": -1}]}, "files.0.size: Input should be greater than or equal to 0"),
        ({"revision": "x", "files": [{**HALF, "hash": "0" * 40, "path": "../x"}]}, "files.0.path: must be a path in the repository, and is `../x`"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, manifest: object, message: str) -> None:
    path = tmp_path / NAME / "fetched.json"
    path.parent.mkdir()
    path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    result = CliRunner().invoke(app, ["fetch", NAME, "--verify", "--to", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{path}: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/proc/self/mem")  # address 0 is not mapped
    unreadable = HubFile("config.json", 0, "sha256", "0" * 64)
    problem = unreadable.problem_in(tmp_path, Progress("comparing", 0))
    assert problem == f"{tmp_path / 'config.json'} cannot be read: Input/output error"


def test_a_damaged_manifest_is_written_anew(run: Callable[..., Result], tmp_path: Path) -> None:
    path = tmp_path / "weights" / NAME / "fetched.json"
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    assert run(NAME).exit_code == 0
    assert run(NAME, "--verify", endpoint=NOBODY).exit_code == 0
    path.unlink()
    path.mkdir()  # cannot be written; a test may run as root, whom no permission stops
    refused = run(NAME)
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-1] == f"{path}: cannot be written: Is a directory"


ADAPTER, COMMIT = "someone/tone-lora", "89abcdef" * 5


def test_an_adapter_is_fetched_and_served(
    run: Callable[..., Result], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its two files, which continue, are compared and read as those of a directory."""
    saved = save_adapter(tmp_path / "saved", checkpoint, seed=1)
    (saved / "optimizer.pt").write_bytes(b"of the training")
    (saved / "checkpoint-1").mkdir()
    (saved / "checkpoint-1" / "adapter_config.json").write_text("{")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1_000)
    given = ("--adapter", f"{ADAPTER}@{COMMIT}")
    with running_hub(saved, repository=ADAPTER, revision=COMMIT) as (hub, url):
        hub.breaks_off_at = 5_500
        assert run(*given, endpoint=url).exit_code == 3
        hub.breaks_off_at = None
        hub.ranges.clear()
        done = run(*given, "--json", endpoint=url)
        assert done.exit_code == 0, done.stderr
        assert hub.ranges == ["bytes=5000-"]
    (result,) = json.loads(done.stdout)
    directory = tmp_path / "weights" / "adapters" / "someone--tone-lora"
    assert result["directory"] == str(directory)
    assert {file["path"] for file in result["files"]} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not (directory / "optimizer.pt").exists()
    assert run(*given, "--verify", endpoint=NOBODY).exit_code == 0
    config = Phi3Config.from_pretrained(checkpoint)
    assert read_adapter("tone", directory, config, torch.float32).num_bytes > 0
    weights = directory / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert run(*given, "--verify", endpoint=NOBODY).exit_code == 1


def test_a_repository_without_an_adapter_is_refused(run: Callable[..., Result], tmp_path: Path) -> None:
    found = variant(NAME)
    assert found is not None
    done = run("--adapter", f"{found.source}@{found.revision}")
    assert done.exit_code == 1
    assert done.stderr == f"{found.source}: there is no file adapter_config.json at revision {found.revision}\n"


@pytest.mark.parametrize("name", ["someone/tone-lora", "tone@" + "0" * 40, "a/../b@" + "0" * 40, "a/b@main"])
def test_an_adapter_needs_its_commit(tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(app, ["fetch", "--adapter", name, "--to", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"--adapter: `{name}` names no adapter; it must be OWNER/REPOSITORY@COMMIT, with the 40 hexadecimal digits of "
        "the commit\n"
    )


def test_nothing_to_fetch_is_a_mistake(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "--to", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (2, "Name a MODEL or an --adapter.\n")
