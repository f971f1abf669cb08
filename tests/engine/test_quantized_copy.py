"""Copies of checkpoints with fewer bits: a model of the copy is the model that is rounded at its load."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from phi3_serve.cli import app
from phi3_serve.engine import load_precision, quantized_copy
from phi3_serve.engine.loader import load
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear
from phi3_serve.engine.quantized_copy import write_quantized_copy
from phi3_serve.errors import CheckpointError, StorageFull
from tests.hub import REPOSITORY, REVISION, Hub
from tests.random_checkpoint import Shape, make

FORMATS = ("int8", "int4", "fp8")
RUN = CliRunner()


@pytest.fixture
def has_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader takes the CPU for a device with fp8; torch computes it there."""
    monkeypatch.setattr(load_precision, "compute_capability", lambda device: (8, 9))


def model_of(directory: Path, quantization: str = "none") -> Any:
    return load("tested", str(directory), None, device="cpu", dtype="bfloat16", quantization=quantization).model


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Each module of ``one`` has the weight of its namesake in ``other``, bit for bit."""
    seen = 0
    for path, module in one.named_modules():
        same = other.get_submodule(path)
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            assert isinstance(same, type(module))
            assert torch.equal(module.dequantized(), same.dequantized())
            seen += 1
        for name, parameter in module.named_parameters(recurse=False):
            assert torch.equal(parameter, same.get_parameter(name))
            seen += 1
    assert seen == len([name for name, _ in one.named_modules() if name.endswith(("proj", "norm", "head", "tokens"))])


@pytest.mark.usefixtures("has_fp8")
@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_is_loaded_as_the_rounded_model(
    checkpoint: Path, tmp_path: Path, quantization: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    tensors = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(quantized_copy, "SHARD_BYTES", 20_000)
    made = write_quantized_copy("tested", source, tmp_path / "copy", quantization)
    shards = sorted((tmp_path / "copy").glob("*.safetensors"))
    assert len(shards) > 1
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert made.num_bytes == sum(tensor.nbytes for tensor in stored.values()) < made.source_bytes
    copied = load("copy", str(tmp_path / "copy"), None, device="cpu", dtype="bfloat16")
    assert (copied.quantization, copied.weight_format.split(":")[0].split()[0]) == (quantization, "compressed-tensors")
    assert_same_weights(copied.model, model_of(source, quantization))


def test_a_tied_head_is_not_stored(tmp_path: Path) -> None:
    make(tmp_path / "source", Shape(num_layers=1), seed=3)
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(tmp_path / "source/model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "source/model.safetensors", metadata={"format": "pt"})
    write_quantized_copy("tied", tmp_path / "source", tmp_path / "copy", "int4")
    assert_same_weights(model_of(tmp_path / "copy"), model_of(tmp_path / "source", "int4"))


def test_the_rest_is_as_in_the_source(checkpoint: Path, tmp_path: Path) -> None:
    write_quantized_copy("tested", checkpoint, tmp_path / "copy", "int8")
    others = {path.name for path in checkpoint.iterdir()} - {"model.safetensors", "config.json", "README.md"}
    assert others
    for name in others:
        assert (tmp_path / "copy" / name).read_bytes() == (checkpoint / name).read_bytes()
    config = json.loads((tmp_path / "copy/config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert config == json.loads((checkpoint / "config.json").read_text())
    modes = {path.stat().st_mode for path in (tmp_path / "copy").iterdir()}
    assert len(modes) == 1  # all can be read by whom the umask lets


def test_what_has_no_copy(checkpoint: Path, tmp_path: Path) -> None:
    write_quantized_copy("tested", checkpoint, tmp_path / "copy", "int8")
    for source, to, message in (
        (tmp_path / "copy", tmp_path / "other", "tested: the weights are quantised already (compressed-tensors: 8 bits)"),
        (checkpoint, tmp_path / "copy", f"{tmp_path}/copy: is not empty; name a new directory, or remove what is in it"),
        (checkpoint, tmp_path / "copy/config.json/x", f"{tmp_path}/copy/config.json/x: cannot be written: "),
    ):  # fmt: skip
        with pytest.raises(CheckpointError) as caught:
            write_quantized_copy("tested", source, to, "int4")
        assert caught.value.message.startswith(message)
    assert not (tmp_path / "other").exists()


def test_an_unfinished_copy_is_none(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broken weight leaves is no checkpoint, and the same command begins again."""
    source = Path(shutil.copytree(checkpoint, tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    broken = {**tensors, "model.norm.weight": torch.full_like(tensors["model.norm.weight"], torch.nan)}
    save_file(broken, source / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr(quantized_copy, "SHARD_BYTES", 20_000)
    with pytest.raises(CheckpointError, match=re.escape("tensor model.norm.weight has nan or inf")):
        write_quantized_copy("tested", source, tmp_path / "copy", "int4")
    with pytest.raises(CheckpointError, match=re.escape("config.json: file is missing")):
        model_of(tmp_path / "copy")
    (tmp_path / "copy/.unfinished/model-00099.safetensors").write_bytes(b"of an older try")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    made = write_quantized_copy("tested", source, tmp_path / "copy", "int4")
    assert_same_weights(model_of(tmp_path / "copy"), model_of(source, "int4"))
    assert not (made.directory / ".unfinished").exists()
    assert not (made.directory / "model-00099.safetensors").exists()


def test_what_a_directory_has_is_not_mixed_with_a_copy(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"another model's")
    with pytest.raises(CheckpointError, match="is not empty"):
        write_quantized_copy("tested", checkpoint, tmp_path, "int4")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_disk_without_room_is_said_before_the_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageFull, match=re.escape("are needed, and 1.0 kB are free")):
        write_quantized_copy("tested", checkpoint, tmp_path / "copy", "int4")


def test_gguf_files_have_no_copy(tmp_path: Path, hub: type[Hub]) -> None:
    """The field that names one of several is of the config, and the command has none."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (repository / name).touch()
    hub.directory = repository
    for source in (REPOSITORY, str(repository), str(repository / "a.gguf")):
        revision = ["--revision", REVISION] if source == REPOSITORY else []
        done = RUN.invoke(app, ["quantize", source, "--to", str(tmp_path / "a"), "--quantization", "int4", *revision])
        assert done.exit_code == 1
        message = done.stderr.splitlines()[-1]
        assert message.startswith(source)
        assert message.endswith("GGUF files are served as they are; a copy is made of safetensors files")
        assert "`file`" not in done.stderr
    assert not (tmp_path / "a").exists()


def test_the_command_says_what_it_made(checkpoint: Path, tmp_path: Path) -> None:
    made = RUN.invoke(
        app, ["quantize", str(checkpoint), "--to", str(tmp_path / "a"), "--quantization", "int4", "--json"]
    )
    assert made.exit_code == 0
    assert json.loads(made.stdout)["directory"] == str(tmp_path / "a")
    assert "rounding weights to int4: 100 %" in made.stderr
    of_catalogue = RUN.invoke(app, ["quantize", "phi-3-tiny", "--to", str(tmp_path / "b"), "--quantization", "int8"])
    assert re.fullmatch(r"phi-3-tiny: [\d.]+ MB instead of 11.5 MB of weights\n    source: .*/b\n", of_catalogue.stdout)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("phi-3-tinny", "--quantization", "int4"), 2, "MODEL: there is no `phi-3-tinny`; did you mean `phi-3-tiny`?"),
        (("/gone", "--quantization", "int4"), 2, "MODEL: there is no `/gone`; it must be a name of the catalogue, a directory, or OWNER/REPOSITORY"),
        (("phi-3-tiny", "--quantization", "int3"), 2, "Invalid value for '--quantization'"),
    ],
)  # fmt: skip
def test_the_command_refuses(args: tuple[str, ...], code: int, message: str, tmp_path: Path) -> None:
    done = RUN.invoke(app, ["quantize", *args, "--to", str(tmp_path / "copy")])
    assert done.exit_code == code
    assert message in done.stderr
    assert not (tmp_path / "copy").exists()
