"""Loading: from a directory and from a Hub, with progress in the log, in the asked-for dtype."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import Phi3ForCausalLM

from phi3_serve.engine import loader
from phi3_serve.errors import CheckpointError
from phi3_serve.observability import progress
from tests.hub import REPOSITORY, REVISION, Hub


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
            with pytest.raises(CheckpointError, match="does not fit into the memory that is free now"):
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
