"""Which cause a loading that failed has: real answers of a Hub, a real full disk, files that are missing."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from phi3_serve.engine import loader, snapshot
from phi3_serve.engine.load_errors import fetch_error, resource_error
from phi3_serve.errors import (
    AccessDenied,
    CheckpointError,
    CheckpointIncomplete,
    MemoryFull,
    SourceUnreachable,
    StorageFull,
)
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY
from tests.hub import REPOSITORY, REVISION, Hub

PREFIX = f"{REPOSITORY}: cannot be fetched at revision {REVISION}: "


def cause_of_fetch(source: str = REPOSITORY, revision: str = REVISION) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        snapshot.fetch("mine", source, revision)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_with_trouble_may_answer_later(hub: type[Hub], status: int) -> None:
    hub.answers_with = (status, "")
    error = cause_of_fetch()
    assert type(error) is SourceUnreachable
    assert error.message == f"{PREFIX}the Hub answers with status {status}"


def test_a_hub_that_is_away_may_come_back(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    error = cause_of_fetch()
    assert type(error) is SourceUnreachable
    assert error.message.startswith(f"{PREFIX}the Hub does not answer: ConnectError: ")


def test_a_gated_repository_says_what_to_do(hub: type[Hub]) -> None:
    hub.answers_with = (403, "GatedRepo")
    error = cause_of_fetch()
    assert type(error) is AccessDenied
    assert error.message.startswith(f"{PREFIX}the repository is gated; accept its terms at http://127.0.0.1:")
    assert error.message.endswith(f"/{REPOSITORY} and set HF_TOKEN to a token of that account")


@pytest.mark.parametrize(("status", "code"), [(401, "RepoNotFound"), (404, "RepoNotFound")])
def test_a_private_repository_looks_like_none(hub: type[Hub], status: int, code: str) -> None:
    hub.answers_with = (status, code)
    error = cause_of_fetch()
    assert type(error) is AccessDenied
    assert error.message == f"{PREFIX}there is no such repository, or it is private and HF_TOKEN may not read it"


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token(hub: type[Hub], status: int) -> None:
    hub.answers_with = (status, "")
    error = cause_of_fetch()
    assert type(error) is AccessDenied
    assert error.message == f"{PREFIX}the Hub refuses the token in HF_TOKEN (status {status})"


def test_a_wrong_revision_stays_wrong(hub: type[Hub]) -> None:
    hub.answers_with = (404, "RevisionNotFound")
    error = cause_of_fetch(revision="mian")
    assert type(error) is CheckpointError
    assert error.message.endswith("at revision mian: the repository has no such revision")


def test_offline_without_the_files_may_be_repaired(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = cause_of_fetch()
    assert type(error) is CheckpointIncomplete
    assert error.message == f"{PREFIX}HF_HUB_OFFLINE is set, and the cache does not have it"


def test_a_full_disk_is_named() -> None:
    with open("/dev/full", "w") as full, pytest.raises(OSError) as caught:  # noqa: PT011 - the number is the test
        full.write("x" * 1_000_000)
    assert caught.value.errno == errno.ENOSPC
    for error in (caught.value, RuntimeError("Data processing error: IO: No space left on device (os error 28)")):
        found = fetch_error("org/model", None, error)
        assert type(found) is StorageFull
        assert ": the disk is full: " in found.message
        assert found.message.startswith("org/model: cannot be fetched at revision main: ")


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), *LACKS_OF_MEMORY], ids=str
)
def test_a_full_memory_is_named(error: Exception) -> None:
    try:
        raise ValueError("somewhere above") from error
    except ValueError as wrapped:
        found = resource_error("/models/m", wrapped)
    assert type(found) is MemoryFull
    assert found.message.startswith("/models/m: does not fit into the memory that is free now: ")
    assert resource_error("/models/m", ValueError("of another kind")) is None


def test_weights_that_the_memory_cannot_hold(checkpoint: Path) -> None:
    """A real allocation that fails: a vocabulary of 2 ** 40 would need petabytes."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.float32)
    assert type(resource_error("/models/m", caught.value)) is MemoryFull


def test_what_is_missing_may_be_repaired_and_what_is_damaged_not(checkpoint: Path, tmp_path: Path) -> None:
    def cause(directory: Path) -> type[CheckpointError]:
        with pytest.raises(CheckpointError) as caught:
            loader.load("mine", str(directory), None, device="cpu", dtype="auto")
        return type(caught.value)

    assert cause(tmp_path / "gone") is CheckpointIncomplete
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        copy = shutil.copytree(checkpoint, tmp_path / f"without-{name}")
        (copy / name).unlink()
        assert cause(copy) is CheckpointIncomplete
    being_copied = shutil.copytree(checkpoint, tmp_path / "being-copied")
    whole = (being_copied / "model.safetensors").read_bytes()
    for size in (4, 500, len(whole) // 2):
        (being_copied / "model.safetensors").write_bytes(whole[:size])
        assert cause(being_copied) is CheckpointIncomplete
    (being_copied / "model.safetensors").write_bytes(whole[:8] + b"x" * (len(whole) - 8))
    assert cause(being_copied) is CheckpointError
    (being_copied / "config.json").write_text("{")
    assert cause(being_copied) is CheckpointError


def test_a_file_that_may_not_be_read_may_be_repaired(checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "config.json").unlink()
    (copy / "config.json").mkdir()
    with pytest.raises(CheckpointIncomplete) as caught:
        loader.load("mine", str(copy), None, device="cpu", dtype="auto")
    assert caught.value.message == f"{copy}/config.json: cannot be read: Is a directory"
