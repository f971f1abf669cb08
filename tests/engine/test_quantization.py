"""A model whose weights have fewer bits: how it is loaded, what it computes, and where it is refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from phi3_serve import catalogue
from phi3_serve.config import ModelConfig
from phi3_serve.engine import loader as loader_module
from phi3_serve.engine import quantization as quantization_module
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.triton_quantized import TritonWeight, TritonWeights
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.precision import quantization_to_load
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear, Quantizer
from phi3_serve.errors import CheckpointError
from tests.engine.asking import Answer, request
from tests.engine.kernels.interpreter import mended_interpreter
from tests.engine.parity import set_dequantized
from training.modules import load_with_modules

SIZES = EngineSizes(num_blocks=64, token_budget=64, max_rows=16)
FORMATS = ("int8", "int4")


def loaded_as(checkpoint: Path, quantization: str, dtype: str = "float32") -> Any:
    return load_with_modules(checkpoint, dtype=dtype, quantization=quantization)


def test_the_bytes_of_the_weights_are_those_of_their_bits(checkpoint: Path) -> None:
    models = {name: loaded_as(checkpoint, name).model for name in ("none", *FORMATS)}
    numbers = sum(parameter.numel() for parameter in models["none"].parameters())
    found = {name: quantization_module.weight_bytes(model) for name, model in models.items()}
    assert found["none"] == 4 * numbers
    assert numbers < found["int8"] < 1.2 * numbers
    assert numbers / 2 < found["int4"] < found["int8"]


@pytest.mark.parametrize("quantization", FORMATS)
def test_every_matrix_has_its_bits_and_is_near_to_what_was_stored(checkpoint: Path, quantization: str) -> None:
    whole, rounded = loaded_as(checkpoint, "none").model, loaded_as(checkpoint, quantization).model
    bits = {"int8": 8, "int4": 4}[quantization]
    seen = 0
    for path, module in whole.named_modules():
        ours = rounded.get_submodule(path)
        if isinstance(module, nn.Linear):
            weight = ours.packed.unpacked()
            assert weight.bits == (8 if path == "lm_head" else bits)
        elif isinstance(module, nn.Embedding):
            weight = ours.weight
            assert weight.bits == 8
        else:
            assert type(ours) is type(module)
            continue
        seen += 1
        error = (weight.dequantized() - module.weight).norm() / module.weight.norm()
        assert error < (0.01 if weight.bits == 8 else 0.1), path
    assert seen == 2 + 4 * whole.config.num_hidden_layers
    of_norms = {n: p for n, p in whole.named_parameters() if "norm" in n}
    assert of_norms.keys() == dict(rounded.named_parameters()).keys()
    assert all(torch.equal(p, rounded.get_parameter(n)) for n, p in of_norms.items())
    assert not any(tensor.is_meta for tensor in (*rounded.parameters(), *rounded.buffers()))


@pytest.mark.parametrize("quantization", FORMATS)
def test_the_rest_of_a_model_is_loaded_as_without(checkpoint: Path, quantization: str) -> None:
    whole, rounded = loaded_as(checkpoint, "none"), loaded_as(checkpoint, quantization)
    assert rounded.defaults == whole.defaults
    assert (rounded.context_length, rounded.vocab_size) == (whole.context_length, whole.vocab_size)
    configs = [loaded.model.config.to_dict() | {"_name_or_path": ""} for loaded in (rounded, whole)]
    assert configs[0] == configs[1]
    assert rounded.model.generation_config.to_dict() == whole.model.generation_config.to_dict()
    assert (rounded.quantization, whole.quantization) == (quantization, "none")
    assert not rounded.model.training


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_forward_pass_of_transformers_runs_with_it(checkpoint: Path, quantization: str, dtype: str) -> None:
    """The self-test at load runs it."""
    rounded, whole = loaded_as(checkpoint, quantization, dtype).model, loaded_as(checkpoint, "none", dtype).model
    assert rounded.dtype == getattr(torch, dtype)
    set_dequantized(whole, rounded)
    whole.to(rounded.dtype)
    ids = torch.tensor([[5, 9, 300, 41]])
    with torch.inference_mode():
        found, expected = rounded(ids).logits, whole(ids).logits
    assert found.dtype == expected.dtype
    near = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 2e-1}[dtype]
    torch.testing.assert_close(found, expected, rtol=near, atol=near * float(expected.abs().max()))


def test_shards_and_tied_embeddings_are_read(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import Phi3ForCausalLM

    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    model: Any = Phi3ForCausalLM.from_pretrained(checkpoint)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    rounded = loaded_as(tmp_path, "int4").model
    head, embedding = rounded.lm_head.packed.unpacked(), rounded.model.embed_tokens.weight
    assert torch.equal(head.values, embedding.values)
    assert torch.equal(head.scales, embedding.scales)


def test_at_most_one_weight_is_held_as_it_was_stored(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []
    most = 0
    take = Quantizer.take

    def watched(self: Quantizer, name: str, weight: torch.Tensor) -> None:
        nonlocal most
        held.append(weakref.ref(weight))
        most = max(most, sum(reference() is not None for reference in held))
        take(self, name, weight)

    monkeypatch.setattr(Quantizer, "take", watched)
    loaded_as(checkpoint, "int8")
    assert len(held) > 20
    assert most <= 2  # the one before may live until its name is taken


@pytest.mark.parametrize("quantization", FORMATS)
def test_the_engine_says_what_its_weights_are(checkpoint: Path, quantization: str) -> None:
    loaded = loaded_as(checkpoint, quantization)
    engine = Engine(loaded, sizes=SIZES, releases_weights=True)
    assert engine.info.quantization == quantization
    made = request(loaded, prompt=(5, 9, 300), max_new_tokens=5, do_sample=False)
    assert Answer(engine, made).ids()
    engine.close()


def test_a_wrong_kernel_is_replaced(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantization_module, "problem_of_pack", lambda kernels, bits, dtype, device: f"no {bits}")
    model = loaded_as(checkpoint, "int4").model
    packs = [m.packed for m in model.modules() if isinstance(m, QuantizedLinear)]
    reference = type(ReferenceKernels().pack(packs[0].unpacked()))
    assert {type(packed) for packed in packs} == {reference}
    assert "The kernel for weights in 8 bits is replaced by a slower one: no 8" in caplog.text
    assert isinstance(model.model.embed_tokens, QuantizedEmbedding)


@pytest.mark.slow  # in Triton's interpreter
def test_a_gpu_has_the_same_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu = loaded_as(checkpoint, "int4").model
    monkeypatch.setattr(loader_module, "select_weight_kernels", lambda device: TritonWeights())
    monkeypatch.setattr(quantization_module, "problem_of_pack", lambda *_: None)  # seconds in the interpreter
    with mended_interpreter():
        model = loaded_as(checkpoint, "int4").model
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            assert isinstance(module.packed, TritonWeight)
            assert torch.equal(module.dequantized(), on_cpu.get_submodule(path).dequantized())


@pytest.mark.parametrize(("free", "expected"), [(10**9, "none"), (10**3, "int4")])
def test_auto_asks_for_the_memory_of_the_gpu(
    checkpoint: Path, free: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[str] = []

    def loads(*arguments: object, quantization: str = "none", **others: object) -> None:
        taken.append(quantization)
        raise CheckpointError("no GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 10**9))
    monkeypatch.setattr(loader_module, "_load_weights", loads)
    with pytest.raises(CheckpointError, match="no GPU"):
        load("mine", str(checkpoint), None, device="cuda", dtype="auto", quantization="auto")
    assert taken == [expected]


def test_another_word_is_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(ValueError, match="'none', 'int8', 'int4' or 'auto'"):
        ModelConfig.model_validate({"name": "phi-3-tiny", "quantization": "fp8"})


@pytest.mark.parametrize(
    ("available", "expected"), [(100, "none"), (99, "int8"), (30, "int8"), (29, "int4"), (3, "int4")]
)
def test_auto_is_the_most_exact_that_fits(available: int, expected: str) -> None:
    needed = {"none": 100, "int8": 30, "int4": 20}
    assert quantization_to_load("auto", needed=needed, available=available) == expected
    for wanted in needed:
        assert quantization_to_load(wanted, needed=needed, available=available) == wanted


def test_auto_asks_for_the_free_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "phi3_serve")
    assert loaded_as(checkpoint, "auto").quantization == "none"
    assert "because" not in caplog.text
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=1000))
    assert loaded_as(checkpoint, "auto").quantization == "int4"
    assert (
        "tested: weights in int4, because 1.0 kB of memory are available and the model in float32 needs " in caplog.text
    )


def test_what_the_variants_need() -> None:
    """On a laptop with 8 GB mini fits in 4 bits, and medium into 16 GB."""
    mini, medium = catalogue.variant("phi-3-mini-4k-instruct"), catalogue.variant("phi-3-medium-4k-instruct")
    assert mini is not None
    assert medium is not None
    assert 3.9e9 < mini.memory_needed("bfloat16", "int4") < 4.5e9
    assert 5.5e9 < mini.memory_needed("bfloat16", "int8") < 6.5e9
    assert medium.memory_needed("bfloat16", "int4") < 11e9
    assert mini.memory_needed("float32", "none") == mini.memory_needed("float32") > 18e9
