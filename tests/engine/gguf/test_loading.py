"""GGUF files as checkpoints: answers compared with transformers over the weights that a file means, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import TokenType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.gguf.checkpoint import _parameter, open_gguf
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear, weight_bytes
from phi3_serve.engine.source import open_source
from phi3_serve.errors import CheckpointError, CheckpointIncomplete
from tests import random_checkpoint
from tests.engine.asking import Answer, request
from tests.engine.gguf.files import BLOCK, all_are, q4_0, q4_k_m, write
from tests.hub import REPOSITORY, REVISION, Hub
from tests.oracle.reference import Oracle
from tests.random_checkpoint import Shape
from training.modules import load_with_modules, modules_over

MIXTURES: dict[str, tuple[Callable[[str], Type], str, str]] = {  # types, quantization, words
    "F32": (all_are(Type.F32), "none", "GGUF: F32"),
    "F16": (all_are(Type.F16), "none", "GGUF: F16"),
    "BF16": (all_are(Type.BF16), "none", "GGUF: BF16"),
    "Q8_0": (all_are(Type.Q8_0), "int8", "GGUF: Q8_0"),
    "Q4_0": (q4_0, "int4", "GGUF: Q4_0, Q6_K"),
    "Q4_K_M": (q4_k_m, "int4", "GGUF: Q4_K, Q5_K, Q6_K"),
}


@pytest.fixture(scope="module", params=[None, 128], ids=["short", "longrope"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose matrices have whole blocks."""
    directory = tmp_path_factory.mktemp("whole")
    shape = Shape(hidden_size=BLOCK, intermediate_size=BLOCK, num_heads=8, num_kv_heads=4, sliding_window=21)
    if request.param is not None:
        shape = Shape(hidden_size=BLOCK, intermediate_size=2 * BLOCK, num_heads=4, context_length=16, long_context_length=request.param)  # fmt: skip
    random_checkpoint.make(directory, shape, seed=11)
    return directory


def loaded_from(path: Path, **given: Any) -> LoadedModel:
    return load("mine", str(path), None, **{"device": "cpu", "dtype": "float32", **given})


def meant_by(directory: Path, weights: dict[str, Tensor]) -> LoadedModel:
    """The model of transformers of ``directory`` with other weights."""
    whole = load_with_modules(directory)
    missing = whole.model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert not missing.missing_keys
    return whole


@pytest.mark.parametrize("mixture", MIXTURES)
def test_answers_are_those_of_transformers_over_what_a_file_means(
    directory: Path, tmp_path: Path, mixture: str
) -> None:
    type_of, quantization, words = MIXTURES[mixture]
    weights = write(tmp_path / "model.gguf", directory, type_of)
    whole, loaded = meant_by(directory, weights), loaded_from(tmp_path / "model.gguf")
    assert (loaded.quantization, loaded.weight_format) == (quantization, words)
    for path, module in loaded.model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            assert torch.equal(module.dequantized(), weights[f"{path}.weight"]), path
        elif isinstance(module, nn.Linear | nn.Embedding):
            assert quantization == "none"
            assert torch.equal(module.weight, weights[f"{path}.weight"]), path
    assert {n: p for n, p in loaded.model.named_parameters() if "norm" in n}.keys() == {
        n for n in weights if "norm" in n
    }
    assert loaded.defaults == whole.defaults
    assert (loaded.context_length, loaded.vocab_size) == (whole.context_length, whole.vocab_size)
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=64, token_budget=64, max_rows=16), releases_weights=True)
    assert (engine.info.quantization, engine.info.weight_format) == (quantization, words)
    oracle = Oracle(whole)
    prompts = [(5, 9, 300 + number) * (1 + 3 * number) for number in range(4)]
    asked = [
        request(whole, str(n), prompt=prompt, max_new_tokens=24, do_sample=False) for n, prompt in enumerate(prompts)
    ]
    answers = [Answer(engine, made) for made in asked]
    for made, answer in zip(asked, answers, strict=True):
        theirs: Any = oracle.answer(made)
        assert answer.ids() == [s.token_ids for s in theirs.sequences]
    engine.close()


@pytest.mark.parametrize("quantization", ["none", "Q4_K_M"])
@pytest.mark.parametrize("directory", [None], indirect=True)
def test_a_model_without_a_head_uses_its_embedding(directory: Path, tmp_path: Path, quantization: str) -> None:
    from transformers import Phi3ForCausalLM

    tied = shutil.copytree(directory, tmp_path / "tied")
    tensors = load_file(tied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    types = all_are(Type.F32) if quantization == "none" else q4_k_m
    weights = write(tmp_path / "model.gguf", tied, types)
    assert "lm_head.weight" not in weights
    loaded = loaded_from(tmp_path / "model.gguf").model
    embedding, head = loaded.model.embed_tokens, loaded.lm_head
    if quantization == "none":
        assert head.weight is embedding.weight
    else:
        assert torch.equal(head.dequantized(), weights["model.embed_tokens.weight"])
        assert torch.equal(embedding.dequantized(), weights["model.embed_tokens.weight"])
    ids = torch.tensor([[5, 9, 300]])
    whole = Phi3ForCausalLM.from_pretrained(tied)
    assert not whole.load_state_dict(weights, strict=False).unexpected_keys
    with torch.inference_mode():
        torch.testing.assert_close(modules_over(loaded)(ids).logits, whole(ids).logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_a_file_in_floats_is_rounded_as_other_checkpoints_are(directory: Path, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", directory, all_are(Type.F32))
    for quantization in ("int8", "int4"):
        from_gguf, whole = (
            loaded_from(path, quantization=quantization) for path in (tmp_path / "model.gguf", directory)
        )
        assert from_gguf.quantization == quantization
        assert weight_bytes(from_gguf.model) == weight_bytes(whole.model)
        ids = torch.tensor([[5, 9, 300]])
        assert torch.equal(modules_over(from_gguf.model)(ids).logits, modules_over(whole.model)(ids).logits)


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_the_bytes_of_the_weights_are_near_to_those_of_the_file(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for kind, most in ((Type.Q8_0, 1.04), (Type.Q4_0, 1.01), (Type.Q4_K, 1.03)):
        # all but the embedding, which has a byte for each number
        write(path, directory, lambda name, kind=kind: Type.Q8_0 if name == "token_embd.weight" else kind)  # type: ignore[misc]
        stored = sum(tensor.num_bytes for tensor in open_gguf(path).tensors.values())
        assert weight_bytes(loaded_from(path).model) < most * stored


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_a_file_a_directory_and_a_name_in_a_directory(directory: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", directory)
    assert open_source(tmp_path).path == open_source(tmp_path / "a.gguf").path == tmp_path / "a.gguf"
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert open_source(tmp_path, "b.gguf").path == tmp_path / "b.gguf"
    with pytest.raises(CheckpointError) as caught:
        open_source(tmp_path)
    assert caught.value.message == f"{tmp_path}: there are 2 GGUF files; `file` must be one of a.gguf, b.gguf"
    with pytest.raises(CheckpointIncomplete) as missing:
        open_source(tmp_path, "c.gguf")
    assert missing.value.message == f"{tmp_path}/c.gguf: file is missing"
    shutil.copytree(directory, tmp_path / "both")
    shutil.copy(tmp_path / "a.gguf", tmp_path / "both")
    assert open_source(tmp_path / "both").gguf is None


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_one_file_of_a_repository_is_downloaded(directory: Path, tmp_path: Path, hub: type[Hub]) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("fp16.gguf", "q4.gguf"):
        write(repository / name, directory)
    (repository / "config.json").write_text("{}")
    hub.directory = repository
    loaded = load("mine", REPOSITORY, REVISION, device="cpu", dtype="float32", file="q4.gguf")
    assert loaded.weight_format == "GGUF: F16"
    assert not [path for path in hub.asked if "resolve" in path and not path.endswith("q4.gguf")]
    for file, message in (
        (None, f"{REPOSITORY}: there are no safetensors files; of a repository with GGUF files, `file` must name one"),
        ("q5.gguf", f"{REPOSITORY}: there is no file q5.gguf at {REVISION}"),
    ):
        with pytest.raises(CheckpointIncomplete) as caught:
            load("mine", REPOSITORY, REVISION, device="cpu", dtype="float32", file=file)
        assert caught.value.message == message


def test_the_names_of_tensors_are_those_of_the_library() -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, 2)
    for module in (
        *("model.embed_tokens", "model.norm", "lm_head"),
        *(f"model.layers.1.{m}" for m in ("input_layernorm", "post_attention_layernorm", "self_attn.qkv_proj")),
        *(f"model.layers.1.{m}" for m in ("self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    ):
        assert _parameter(f"{names.get_name(module)}.weight") == f"{module}.weight"


def fault(path: Path, **given: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        loaded_from(path, **given)
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("directory", [None], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "llama"}, "general.architecture is 'llama'; only 'phi3' is served"),
        ({"phi3.block_count": None}, "phi3.block_count is None; it must be a positive number"),
        ({"phi3.block_count": 1}, "1 tensor(s) have no place"),
        ({"phi3.block_count": 3}, "tensor(s) that config.json requires are missing: model.layers.2."),
        ({"phi3.feed_forward_length": 512}, "tensor(s) have another shape than config.json requires"),
        ({"split.count": 3}, "the file is one of 3 parts; join them with llama-gguf-split --merge"),
        ({"tokenizer.ggml.model": "gpt2"}, "tokenizer.ggml.model is 'gpt2'; only 'llama' is served, which Phi-3 has"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_one_line(
    directory: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model.gguf"
    write(path, directory, change=change)
    found = fault(path)
    assert found.startswith(f"{path}: ")
    assert message.replace("1 tensor(s)", "tensor(s)") in found


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_other_types_are_named_with_those_that_are_read(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, directory, lambda name: Type.Q5_1 if "attn_qkv" in name else Type.Q4_0)
    assert fault(path) == (
        f"{path}: tensor blk.0.attn_qkv.weight is stored as Q5_1; "
        "only F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K are read"
    )


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_damaged_files(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, directory)
    whole = path.read_bytes()
    for content in (whole[:-1000], whole[:5000], whole[:10], b"", b"not a model" * 50):
        path.write_bytes(content)
        assert fault(path).startswith(f"{path}: cannot be read as GGUF; it may be truncated: ")


@pytest.mark.parametrize("directory", [None], indirect=True)
@pytest.mark.parametrize("kind", [Type.F16, Type.Q8_0])
def test_a_scale_that_is_no_number_is_refused(directory: Path, tmp_path: Path, kind: Type) -> None:
    path = tmp_path / "model.gguf"
    write(path, directory, all_are(kind))
    tensor = open_gguf(path).tensors["model.layers.1.mlp.down_proj.weight"]
    content = bytearray(path.read_bytes())
    content[tensor.offset : tensor.offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(content)
    assert fault(path) == f"{path}: tensor model.layers.1.mlp.down_proj.weight has nan or inf; the weights are damaged"


@pytest.mark.parametrize("directory", [None], indirect=True)
def test_another_quantization_is_refused(directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, directory, q4_k_m)
    assert fault(path, quantization="int8") == (
        "mine: quantization is int8, but the checkpoint has weights in 4 bits; allowed are int4 and auto"
    )
    assert loaded_from(path, quantization="auto").quantization == "int4"


@pytest.mark.parametrize("directory", [None], indirect=True)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype(directory: Path, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.gguf"
    for types in (all_are(Type.F32), q4_k_m):
        write(path, directory, types)
        model = loaded_from(path, dtype=dtype).model
        assert model.dtype == getattr(torch, dtype)
        assert modules_over(model)(torch.tensor([[5, 9]])).logits.dtype == getattr(torch, dtype)


def test_token_types_are_those_of_the_library() -> None:
    from phi3_serve.engine.gguf.tokenizer import _Kind

    assert {kind.name: kind.value for kind in _Kind} == {kind.name: kind.value for kind in TokenType}
