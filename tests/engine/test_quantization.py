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
from phi3_serve.config.model import ModelConfig
from phi3_serve.engine import loader as loader_module
from phi3_serve.engine import quantization as quantization_module
from phi3_serve.engine.device import free_gpu_bytes
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.engine_core import EngineCore
from phi3_serve.engine.kernels.contract import Bits, QuantizedWeight, WeightKernels
from phi3_serve.engine.kernels.quantize import quantize_in_torch
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.kernels.triton_fp8 import ScaledWeight
from phi3_serve.engine.kernels.triton_quantized import TritonWeight, TritonWeights
from phi3_serve.engine.load_precision import Precision
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.precision import quantization_to_load
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear, Quantizer, quantize_model, round_weight
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
    loaded = loaded_as(checkpoint, "int4")
    model = loaded.model
    packs = [m.packed for m in model.modules() if isinstance(m, QuantizedLinear)]
    unpacked = packs[0].unpacked()
    assert isinstance(unpacked, QuantizedWeight)
    reference = type(ReferenceKernels().pack(unpacked))
    assert {type(packed) for packed in packs} == {reference}
    assert "The kernel for weights in 8 bits is replaced by a slower one: no 8" in caplog.text
    assert isinstance(model.model.embed_tokens, QuantizedEmbedding)
    assert EngineCore(loaded, SIZES).info.replaced_kernels == {"multiply_packed": "8 bits: no 8"}


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


def modules_in_fp8(checkpoint: Path, kernels: WeightKernels) -> Any:
    model = loaded_as(checkpoint, "none").model
    quantize_model(model, "fp8", kernels)
    return model


class RoundsRows(nn.Module):
    """A linear layer in fp8, written again: numbers and weights are rounded, and float64 multiplies."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = self.rounded(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.rounded(x) @ self.weight.T).float()

    def rounded(self, rows: torch.Tensor) -> torch.Tensor:
        scales = rows.abs().amax(-1, keepdim=True) / 448
        return (rows / scales).to(torch.float8_e4m3fn).double() * scales.double()


@pytest.mark.parametrize("kernels", [select_weight_kernels(torch.device("cpu")), TritonWeights()], ids=["torch", "gpu"])
def test_fp8_is_a_rounding_of_weights_and_of_rows(
    checkpoint: Path, kernels: WeightKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization_module, "problem_of_pack", lambda *_: None)  # seconds in the interpreter
    whole = loaded_as(checkpoint, "none").model
    with mended_interpreter(), torch.inference_mode():
        model = modules_in_fp8(checkpoint, kernels)
        for path, module in whole.named_modules():
            if path != "lm_head" and isinstance(module, nn.Linear):
                whole.set_submodule(path, RoundsRows(module.weight))
                ours = model.get_submodule(path)
                error = (ours.dequantized() - module.weight).norm() / module.weight.norm()
                assert 0.02 < error < 0.03
        for path in ("lm_head", "model.embed_tokens"):
            assert not isinstance(model.get_submodule(path).dequantized(), nn.Parameter)
            whole.get_submodule(path).weight.data = model.get_submodule(path).dequantized()
        assert model.lm_head.packed.unpacked().bits == 8
        ids = torch.tensor([[5, 9, 300, 41, 77, 8]])
        found, expected = model(ids).logits, whole(ids).logits
    # A number on the edge between two values falls to either side.
    assert (found - expected).norm() < 1e-3 * expected.norm()
    exact = loaded_as(checkpoint, "none").model(ids).logits
    assert 0.01 * exact.norm() < (found - exact).norm() < 0.2 * exact.norm()


def test_a_wrong_product_in_fp8_is_replaced(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: object, **more: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(quantization_module, "problem_of_pack", lambda *_: None)
    monkeypatch.setattr(torch, "_scaled_mm", fails)
    with mended_interpreter():
        model = modules_in_fp8(checkpoint, TritonWeights())
    packs = [m.packed for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert not any(isinstance(packed, ScaledWeight | TritonWeight) for packed in packs)
    said = "The kernel for weights in fp8 is replaced by a slower one: RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED"
    assert said in caplog.text


def test_fp8_is_refused_before_weights_are_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(*arguments: object, **others: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loader_module, "_load_weights", reads)
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(checkpoint), None, device="cpu", dtype="auto", quantization="fp8")
    assert caught.value.message == (
        "mine: quantization is fp8, which a CPU does not have; "
        "it needs a GPU of compute capability 8.9 or higher, otherwise allowed are none, int8, int4 and auto"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(checkpoint), None, device="cuda", dtype="float32", quantization="fp8")
    assert caught.value.message == ("mine: quantization is fp8, but dtype is float32; allowed are bfloat16 and float16")


def test_fp8_is_loaded_where_the_gpu_has_it(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def loads(name: str, checkpoint: object, config: object, precision: Precision, *others: object) -> None:
        taken.append(precision.quantization)
        raise CheckpointError("no GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(loader_module, "_load_weights", loads)
    with pytest.raises(CheckpointError, match="no GPU"):
        load("mine", str(checkpoint), None, device="cuda", dtype="bfloat16", quantization="fp8")
    assert taken == ["fp8"]


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_without_our_compiled_kernels_the_device_rounds(quantization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU need not have a compiler, and torch takes three minutes of a core for a mini."""
    monkeypatch.setattr(quantization_module, "cpu_library", lambda: None)
    on: list[torch.device] = []

    def watched(weight: torch.Tensor, bits: Bits) -> QuantizedWeight:
        on.append(weight.device)
        return quantize_in_torch(weight, bits)

    monkeypatch.setattr(quantization_module, "quantize_in_torch", watched)
    found = round_weight(torch.randn(5, 64), quantization, torch.device("meta"))
    assert on == [torch.device("meta")] == [found.values.device]


@pytest.mark.parametrize(
    ("free", "share", "expected"),
    [(10**9, 1.0, "none"), (10**3, 1.0, "int4"), (10**9, 0.9, "none"), (10**9, 0.6, "int4")],
)
def test_auto_asks_for_the_memory_of_the_gpu(
    checkpoint: Path, free: int, share: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a share of it, CUDA takes a part."""
    taken: list[str] = []

    def loads(name: str, checkpoint: object, config: object, precision: Precision, *others: object) -> None:
        taken.append(precision.quantization)
        raise CheckpointError("no GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 10**9))
    monkeypatch.setattr(loader_module, "_load_weights", loads)
    with pytest.raises(CheckpointError, match="no GPU"):
        load("mine", str(checkpoint), None, device="cuda", dtype="auto", quantization="auto", gpu_share=share)
    assert taken == [expected]


def test_another_word_is_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(ValueError, match="'none', 'int8', 'int4', 'fp8' or 'auto'"):
        ModelConfig.model_validate({"name": "phi-3-tiny", "quantization": "fp4"})


@pytest.mark.parametrize(
    ("available", "expected"), [(100, "none"), (99, "int8"), (30, "int8"), (29, "int4"), (3, "int4")]
)
def test_auto_is_the_most_exact_that_fits(available: int, expected: str) -> None:
    needed = {"none": 100, "int8": 30, "int4": 20}
    assert quantization_to_load("auto", needed=needed, available=available) == expected
    for wanted in needed:
        assert quantization_to_load(wanted, needed=needed, available=available) == wanted


@pytest.mark.parametrize(("share", "expected"), [(1.0, "none"), (0.5, "int8"), (0.35, "int4")])
def test_auto_for_mini_on_a_share_of_a_t4(share: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (15_500_000_000, 16_000_000_000))
    mini = catalogue.variant("phi-3-mini-4k-instruct")
    assert mini is not None
    needed = {name: mini.memory_needed("float16", name) for name in catalogue.EXACT_QUANTIZATIONS}
    assert quantization_to_load("auto", needed=needed, available=free_gpu_bytes(share)) == expected


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
    assert 5.5e9 < mini.memory_needed("bfloat16", "int8") == mini.memory_needed("bfloat16", "fp8") < 6.5e9
    assert medium.memory_needed("bfloat16", "int4") < 11e9
    assert mini.memory_needed("float32", "none") == mini.memory_needed("float32") > 18e9
    assert 11e9 < mini.memory_needed("float32", weights="bfloat16") < 12e9
