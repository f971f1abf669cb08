"""Each fault of a checkpoint directory is one clear line that names the file."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.engine.checkpoint import open_checkpoint
from phi3_serve.engine.loader import load
from phi3_serve.errors import CheckpointError
from tests.random_checkpoint import Shape, make


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharded")
    make(directory, Shape(), max_shard_size="100KB")
    return directory


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def fault(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_whole_checkpoint_is_opened(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    assert opened.config["model_type"] == "phi3"
    header = struct.unpack("<Q", (checkpoint / "model.safetensors").read_bytes()[:8])[0]
    assert opened.total_bytes == (checkpoint / "model.safetensors").stat().st_size - 8 - header


def test_shards_are_counted_together(sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 1
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert open_checkpoint(sharded).total_bytes == index["metadata"]["total_size"]


def test_missing_directory(tmp_path: Path) -> None:
    assert fault(tmp_path / "gone") == f"{tmp_path}/gone: no such checkpoint directory"


def test_missing_config(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert fault(copy) == f"{copy}/config.json: file is missing"


def test_config_that_is_not_json(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    assert fault(copy).startswith(f"{copy}/config.json: cannot be read as JSON: Expecting property name")


def test_config_of_another_model(copy: Path) -> None:
    edit(copy / "config.json", lambda c: c.update(model_type="llama", architectures=["LlamaForCausalLM"]))
    assert fault(copy) == f"{copy}/config.json: model_type is 'llama'; only 'phi3' is served"


def test_config_of_another_architecture(copy: Path) -> None:
    edit(copy / "config.json", lambda c: c.update(architectures=["Phi3ForSequenceClassification"]))
    assert fault(copy) == (
        f"{copy}/config.json: architectures is ['Phi3ForSequenceClassification']; only ['Phi3ForCausalLM'] is served"
    )


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert fault(copy) == (
        f"{copy}/model.safetensors: file is missing, and there is no model.safetensors.index.json either"
    )


def test_pickled_weights_only(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert fault(copy) == (
        f"{copy}/pytorch_model.bin: pickled weights could run code and are refused; convert them to safetensors"
    )


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    assert fault(copy) == f"{path}: truncated at {len(whole) - 1000:,} of {len(whole):,} bytes"
    path.write_bytes(whole[:100])
    assert fault(copy) == f"{path}: truncated within its header, at 100 bytes"
    path.write_bytes(b"")
    assert fault(copy) == f"{path}: truncated within its header, at 0 bytes"


def test_weights_that_are_no_safetensors(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 4) + b"oops" + bytes(100))
    assert fault(copy).startswith(f"{path}: cannot be read as safetensors: Expecting value")


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON at the start of a safetensors file; the tensors stay."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda h: h[NORM].update(shape=[7]), "cannot be read as safetensors: "),
        (lambda h: h[NORM].update(shape="x"), "cannot be read as safetensors: "),
        (lambda h: h[NORM].update(dtype="F99"), "cannot be read as safetensors: "),
        (lambda h: h[NORM].update(data_offsets=[-4, 124]), "cannot be read as safetensors: "),
        (lambda h: h[NORM].update(data_offsets=[0, 128]), "cannot be read as safetensors: "),
        (lambda h: h[NORM].update(data_offsets=[0]), "cannot be read as safetensors: "),
        (lambda h: h[NORM].pop("data_offsets"), "cannot be read as safetensors: "),
        (lambda h: h.update({NORM: [1]}), "cannot be read as safetensors: "),
        (
            lambda h: h[NORM].update(dtype="I32"),
            f"tensor {NORM} is stored as 'I32', as in quantised weights; only F64, F32, F16, BF16 are read",
        ),
        (
            lambda h: h[NORM].update(dtype="F8_E4M3", shape=[128]),
            f"tensor {NORM} is stored as 'F8_E4M3', as in quantised weights; only F64, F32, F16, BF16 are read",
        ),
    ],
)
def test_damaged_header(copy: Path, change: Callable[[dict[str, Any]], object], text: str) -> None:
    path = copy / "model.safetensors"
    rewrite_header(path, change)
    assert fault(copy).startswith(f"{path}: {text}")


def test_header_that_is_too_long(copy: Path) -> None:
    path = copy / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)  # sparse
    assert fault(copy) == (
        f"{path}: cannot be read as safetensors: the header has 200,000,000 bytes; the most is 100,000,000"
    )


def test_weights_that_are_a_directory(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").mkdir()
    assert fault(copy) == f"{copy}/model.safetensors: cannot be read: Is a directory"


def test_bytes_behind_the_tensors(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes() + bytes(16))
    assert fault(copy).startswith(f"{path}: cannot be read as safetensors: ")


def test_absent_shard(sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    assert fault(copy) == f"{shard}: file is missing"


def test_shard_without_its_tensor(sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    index = copy / "model.safetensors.index.json"
    shard = sorted(copy.glob("*.safetensors"))[0]
    edit(index, lambda i: i["weight_map"].update({"model.extra.weight": shard.name}))
    assert (
        fault(copy) == f"{shard}: tensor model.extra.weight is missing, although model.safetensors.index.json lists it"
    )


def test_tensor_in_another_shard_than_the_index_says(sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    index = copy / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    other = next(shard for shard in shards.values() if shard != shards["model.norm.weight"])
    edit(index, lambda i: i["weight_map"].update({"model.norm.weight": other}))
    assert fault(copy) == (
        f"{copy}/{other}: tensor model.norm.weight is missing, although model.safetensors.index.json lists it"
    )


@pytest.mark.parametrize("weight_map", [{}, [], "x", {"lm_head.weight": 3}, {"lm_head.weight": "pytorch_model.bin"}])
def test_index_without_usable_shards(sharded: Path, tmp_path: Path, weight_map: object) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    index = copy / "model.safetensors.index.json"
    edit(index, lambda i: i.update(weight_map=weight_map))
    assert fault(copy) == (
        f"{index}: weight_map must map each tensor to the name of a .safetensors file in the same directory"
    )


def test_a_single_file_comes_before_shards(sharded: Path, tmp_path: Path) -> None:
    """In transformers too, so what is checked is what is loaded."""
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    make(tmp_path / "whole", Shape())
    shutil.copy(tmp_path / "whole" / "model.safetensors", copy)
    sorted(copy.glob("model-*.safetensors"))[0].unlink()
    assert open_checkpoint(copy).total_bytes == open_checkpoint(sharded).total_bytes
    load("mine", str(copy), None, device="cpu", dtype="auto")


def test_index_that_points_outside(sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    index = copy / "model.safetensors.index.json"
    edit(index, lambda i: i["weight_map"].update({"lm_head.weight": "../model.safetensors"}))
    assert fault(copy) == (
        f"{index}: weight_map must map each tensor to the name of a .safetensors file in the same directory"
    )


def test_missing_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert fault(copy) == f"{copy}/tokenizer.json: file is missing"


def test_tokenizer_without_control_tokens(copy: Path) -> None:
    edit(
        copy / "tokenizer.json",
        lambda t: t.update(added_tokens=[a for a in t["added_tokens"] if a["content"] != "<|end|>"]),
    )
    assert fault(copy) == (
        f"{copy}/tokenizer.json: control token <|end|> is missing; this tokenizer does not belong to this checkpoint"
    )


def test_tokenizer_with_ids_beyond_the_embedding(copy: Path) -> None:
    edit(copy / "config.json", lambda c: c.update(vocab_size=500))
    highest = max(a["id"] for a in json.loads((copy / "tokenizer.json").read_text())["added_tokens"])
    assert fault(copy) == (
        f"{copy}/tokenizer.json: has token id {highest}, but vocab_size in config.json is 500; "
        "this tokenizer does not belong to this checkpoint"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(model={"type": "BPE", "vocab": 3}),
        lambda t: t.update(model=[]),
        lambda t: t.update(added_tokens=7),
        lambda t: t.pop("model"),
    ],
)
def test_tokenizer_that_is_no_tokenizer(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(copy / "tokenizer.json", change)
    assert fault(copy).startswith(f"{copy}/tokenizer.json: cannot be read as a tokenizer: ")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    assert fault(copy).startswith(f"{copy}/{name}: ")


def loading_fault(directory: Path, quantization: str = "none") -> str:
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(directory), None, device="cpu", dtype="auto", quantization=quantization)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.fixture(params=["none", "int8"])
def quantization(request: pytest.FixtureRequest) -> str:
    """``from_pretrained`` reads the weights, or ``loader`` does."""
    return str(request.param)


def test_weights_without_a_tensor(copy: Path, quantization: str) -> None:
    """Such a checkpoint would otherwise be served with that tensor drawn at random."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert (
        loading_fault(copy, quantization)
        == f"{copy}: 1 tensor(s) that config.json requires are missing: model.norm.weight"
    )


def test_weights_of_another_shape(copy: Path, quantization: str) -> None:
    edit(copy / "config.json", lambda c: c.update(intermediate_size=128))
    assert loading_fault(copy, quantization) == (
        f"{copy}: 6 tensor(s) have another shape than config.json requires: "
        "model.layers.0.mlp.down_proj.weight has [32, 64] instead of [32, 128]"
    )


def test_weights_of_more_layers_than_the_config_has(copy: Path, quantization: str) -> None:
    """Such a checkpoint would otherwise be served without its last layers."""
    edit(copy / "config.json", lambda c: c.update(num_hidden_layers=2))
    assert loading_fault(copy, quantization) == (
        f"{copy}: 6 tensor(s) have no place in the model that config.json describes: "
        "model.layers.2.input_layernorm.weight"
    )


def test_weights_with_a_bias(copy: Path, quantization: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.0.self_attn.qkv_proj.bias"] = torch.zeros(96)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert loading_fault(copy, quantization) == (
        f"{copy}: 1 tensor(s) have no place in the model that config.json describes: "
        "model.layers.0.self_attn.qkv_proj.bias"
    )


def test_a_value_head_is_not_used(copy: Path, quantization: str, caplog: pytest.LogCaptureFixture) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["v_head.summary.weight"] = torch.zeros(1, 32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)  # transformers 4 stored it
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    load("mine", str(copy), None, device="cpu", dtype="auto", quantization=quantization)
    warnings = [r.getMessage() for r in caplog.records if r.name == "phi3_serve" and r.levelname == "WARNING"]
    assert warnings == ["mine: 1 tensor(s) are not used: v_head.summary.weight"]


def test_weights_that_are_no_numbers(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert loading_fault(copy) == (
        f"{copy}/model.safetensors: tensor model.norm.weight has nan or inf; the weights are damaged"
    )
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("inf")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert loading_fault(copy, "int4") == (
        f"{copy}/model.safetensors: tensor model.layers.1.mlp.down_proj.weight has nan or inf; the weights are damaged"
    )


def test_ends_that_cannot_be_generated_are_dropped(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Phi3Config's own default, 32000, is beyond a small vocabulary; transformers lets it be."""
    edit(copy / "generation_config.json", lambda c: c.update(eos_token_id=[32000, 650], bos_token_id=32001))
    loaded = load("mine", str(copy), None, device="cpu", dtype="auto")
    assert loaded.defaults.eos_token_ids() == (650,)
    assert loaded.defaults.bos_token_id is None
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    edit(copy / "generation_config.json", lambda c: c.update(eos_token_id=32000))
    assert load("mine", str(copy), None, device="cpu", dtype="auto").defaults.eos_token_ids() == ()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "mine: the generation config has no end-of-sequence token; answers end only by their length"
    ]


def test_cuda_where_there_is_none(checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(checkpoint), None, device="cuda", dtype="auto")
    assert caught.value.message == "mine: device is cuda, but torch sees no GPU on this node"
