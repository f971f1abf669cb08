"""Loading: from a directory and from a Hub, with progress in the log, in the asked-for dtype."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Phi3ForCausalLM

from phi3_serve.engine import loader, snapshot
from phi3_serve.engine.model.rope import Rope
from phi3_serve.engine.weights import Phi3Weights
from phi3_serve.errors import CheckpointError
from phi3_serve.observability import progress
from tests.hub import REPOSITORY, REVISION, Hub


def test_a_hub_source_is_fetched_at_its_revision_with_progress(
    hub: type[Hub], checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "phi3_serve"):
        directory = snapshot.fetch("mine", REPOSITORY, REVISION)
    assert {p.name for p in directory.iterdir()} == {p.name for p in checkpoint.iterdir()}
    assert (directory / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    lines = [r.getMessage() for r in caplog.records if "downloading" in r.getMessage()]
    assert lines[-1].startswith(f"mine: downloading {REPOSITORY}: 100 % (")
    of_the_repository = [path for path in hub.asked if REPOSITORY in path]
    assert len(of_the_repository) > 5
    assert all(f"/{REVISION}" in path for path in of_the_repository)


def test_a_fetched_source_is_not_fetched_again(hub: type[Hub]) -> None:
    first = snapshot.fetch("mine", REPOSITORY, REVISION)
    hub.asked.clear()
    assert snapshot.fetch("mine", REPOSITORY, REVISION) == first
    assert not [path for path in hub.asked if path.endswith(".safetensors")]


def test_a_repository_that_is_not_there_is_one_line(hub: type[Hub]) -> None:
    with pytest.raises(CheckpointError) as caught:
        snapshot.fetch("mine", "nobody/nothing", REVISION)
    assert caught.value.message.startswith(f"nobody/nothing: cannot be fetched at revision {REVISION}: ")
    assert "\n" not in caught.value.message


def test_offline_without_the_files_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        snapshot.fetch("mine", REPOSITORY, REVISION)
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "head", ["its own", "none", "the embedding", "the only one", "its own, although the config says tied"]
)
def test_weights_and_rotations_are_those_of_transformers(
    checkpoint: Path, tmp_path: Path, head: str, dtype: str
) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    if head != "its own":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tensors = load_file(checkpoint / "model.safetensors")
    if head == "none":
        del tensors["lm_head.weight"]
    elif head == "the only one":
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    elif head == "the embedding":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = loader.load("mine", str(tmp_path), None, device="cpu", dtype=dtype).model
    theirs: Any = Phi3ForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.state_dict().items())
    assert {weight.dtype for weight in ours.state_dict().values()} == {theirs.dtype} == {ours.dtype}
    assert (ours.lm_head.weight is ours.model.embed_tokens.weight) == (
        head in ("none", "the embedding", "the only one")
    )
    positions = torch.arange(50)
    cosine, sine = Rope(ours.config, torch.device("cpu")).rotation(positions, torch.zeros_like(positions), theirs.dtype)
    of_theirs = theirs.model.rotary_emb(torch.zeros(1, dtype=theirs.dtype), positions[None])
    assert torch.equal(cosine[:, 0], of_theirs[0][0])
    assert torch.equal(sine[:, 0].abs(), of_theirs[1][0].abs())


def test_loaded_weights_outlive_their_file(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    loaded = loader.load("mine", str(tmp_path), None, device="cpu", dtype="auto")
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    with (tmp_path / "model.safetensors").open("r+b") as file:  # in place, as a copy over it does
        file.write(bytes((tmp_path / "model.safetensors").stat().st_size))
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items())


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
    asked: list[torch.dtype] = []

    def take(model: Phi3Weights, device: str) -> None:
        asked.append(model.dtype)
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loader, "_taken_as_it_is", take)
    shutil.copytree(checkpoint, half := tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    with caplog.at_level(logging.INFO, "phi3_serve"):
        for dtype in ("auto", "float32"):
            with pytest.raises(CheckpointError, match="does not fit into the memory that is free now"):
                loader.load("mine", str(half), None, device="cuda", dtype=dtype)
    assert asked == [torch.float16, torch.float32]
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


def test_a_cache_that_the_device_does_not_have_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        loader.load("mine", str(checkpoint), None, device="cpu", dtype="auto", kv_cache_dtype="fp8")
    assert caught.value.message == "mine: kv_cache_dtype is fp8, which a CPU does not have; allowed are auto and int8"


def test_the_checkpoints_own_generation_config_is_read(checkpoint: Path) -> None:
    loaded = loader.load("mine", str(checkpoint), None, device="cpu", dtype="auto")
    config = json.loads((checkpoint / "generation_config.json").read_text())
    assert list(loaded.defaults.eos_token_ids()) == config["eos_token_id"]
    assert len(config["eos_token_id"]) == 3
    assert loaded.context_length == 2048
