"""Checkpoints whose linear layers compressed-tensors stores in float8: what they mean, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from phi3_serve.engine import load_precision
from phi3_serve.engine.compressed_tensors import IN_FP8, SCALE, pack, unpack_fp8
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kernels.contract import Fp8Weight
from phi3_serve.engine.kernels.quantize import quantize_to_fp8
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.quantization import QuantizedLinear
from phi3_serve.engine.stored_quantization import StoredQuantization, read_quantization
from phi3_serve.errors import CheckpointError
from tests.engine.asking import Answer, request

RECORD = Path(__file__).parents[1] / "data" / "quantized" / "compressed_tensors_fp8_0_20_1.json"
RECORDED: list[dict[str, Any]] = json.loads(RECORD.read_text())
LAYER = "model.layers.1.mlp.gate_up_proj"
STORED = StoredQuantization("compressed-tensors fp8", 8, None)


def config_of(scheme: dict[str, Any]) -> dict[str, Any]:
    """The field of config.json, as llm-compressor writes it."""
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": scheme},
    }


def changed(part: str, **fields: Any) -> dict[str, Any]:
    scheme = RECORDED[0]["scheme"]
    return {**scheme, part: {**scheme[part], **fields}}


@pytest.mark.parametrize("layer", RECORDED, ids=lambda layer: str(layer["scheme"]["weights"]["strategy"]))
def test_a_layer_is_what_the_library_makes_of_it(layer: dict[str, Any]) -> None:
    assert read_quantization({"quantization_config": config_of(layer["scheme"])}) == STORED
    assert (STORED.quantization, STORED.in_words) == ("fp8", "compressed-tensors fp8")
    dtype = getattr(torch, layer["dtype"])
    parts = {
        IN_FP8: torch.tensor(layer["stored"]["weight"], dtype=torch.uint8).view(torch.float8_e4m3fn),
        SCALE: torch.tensor(layer["stored"]["weight_scale"]).to(dtype),
    }
    weight = unpack_fp8(parts, 20, STORED)
    assert list(weight.scales.shape) == [5, 1]
    assert weight.scales.is_contiguous()
    assert torch.equal(weight.dequantized().to(dtype), torch.tensor(layer["unpacked"]).to(dtype))
    assert torch.equal(pack(weight)[IN_FP8].view(torch.uint8), parts[IN_FP8].view(torch.uint8))


@pytest.mark.parametrize(
    ("scheme", "text"),
    [
        (changed("weights", num_bits=4), "weights.num_bits is 4; it must be 8"),
        (changed("weights", type="int"), "weights.type is 'int'; it must be 'float'"),
        (changed("weights", strategy="block"), "weights.strategy is 'block'; it must be 'channel' or 'tensor'"),
        (changed("weights", symmetric=False), "weights.symmetric is False; it must be True"),
        (changed("input_activations", dynamic=False), "input_activations.dynamic is False; it must be True"),
        (changed("input_activations", strategy="tensor"), "input_activations.strategy is 'tensor'; it must be 'token'"),
        ({**RECORDED[0]["scheme"], "input_activations": None}, "input_activations is None; it must have 8 bits for each token"),
        ({**RECORDED[0]["scheme"], "output_activations": {}}, "output_activations is {}; it must be null"),
        ({**RECORDED[0]["scheme"], "weights": None}, "weights.type is None; it must be 'float'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(scheme: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_quantization({"quantization_config": config_of(scheme)})
    assert caught.value.message == f"quantization_config.config_groups.group_0.{text}"


@pytest.fixture
def stored(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint in float8; one layer has one scale for all outputs."""
    directory = Path(shutil.copytree(checkpoint, tmp_path / "stored"))
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = quantize_to_fp8(tensors[name])
        if name == f"{LAYER}.weight":
            scale = (tensors[name].abs().max() / 448)[None].float()
            weight = Fp8Weight((tensors[name].float() / scale).to(torch.float8_e4m3fn), scale)
        tensors[name], tensors[f"{name}_scale"] = weight.values, weight.scales
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = config_of(RECORDED[0]["scheme"])
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture
def has_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader takes the CPU for a device with fp8; torch computes it there."""
    monkeypatch.setattr(load_precision, "compute_capability", lambda device: (8, 9))


@pytest.mark.usefixtures("has_fp8")
@pytest.mark.parametrize("quantization", ["none", "auto", "fp8"])
def test_it_is_served_as_it_is_stored(stored: Path, quantization: str) -> None:
    tensors = load_file(stored / "model.safetensors")
    loaded = load("stored", str(stored), None, device="cpu", dtype="bfloat16", quantization=quantization)
    assert (loaded.quantization, loaded.weight_format) == ("fp8", "compressed-tensors fp8")
    seen = 0
    for path, module in loaded.model.named_modules():
        if isinstance(module, QuantizedLinear) and path != "lm_head":
            weight = module.packed.unpacked()
            assert isinstance(weight, Fp8Weight)
            meant = tensors[f"{path}.weight"].float() * tensors[f"{path}.weight_scale"]
            assert torch.equal(module.dequantized(), meant)
            seen += 1
    assert seen == 4 * loaded.model.config.num_hidden_layers
    assert not isinstance(loaded.model.lm_head.packed.unpacked(), Fp8Weight)
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=64, token_budget=64, max_rows=16))
    made = request(loaded, prompt=(5, 9, 300), max_new_tokens=5, do_sample=False)
    assert Answer(engine, made).ids()
    assert engine.info.quantization == "fp8"
    engine.close()


def fault(directory: Path, **given: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(directory), None, **({"device": "cpu", "dtype": "bfloat16"} | given))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_cpu_is_refused(stored: Path) -> None:
    assert fault(stored, dtype="auto") == (
        "mine: the checkpoint has weights in fp8, which a CPU does not have; "
        "it needs a GPU of compute capability 8.9 or higher"
    )


@pytest.mark.usefixtures("has_fp8")
def test_another_quantization_is_refused(stored: Path) -> None:
    assert fault(stored, quantization="int8") == (
        "mine: quantization is int8, but the checkpoint has weights in fp8; allowed are fp8 and auto"
    )


@pytest.mark.usefixtures("has_fp8")
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), f"tensor {LAYER}.weight is torch.float8_e4m3fn and has no weight_scale"),
        (lambda t: t.pop(f"{LAYER}.weight"), "1 tensor(s) that config.json requires are missing: " + LAYER + ".weight"),
        (lambda t: t.update({f"{LAYER}.weight_scale": torch.ones(128, 2)}), f"{LAYER}.weight_scale has [128, 2] instead of [128, 1] or [1]"),
        (lambda t: t.update({f"{LAYER}.weight": torch.ones(128, 32)}), f"{LAYER}.weight is torch.float32 [128, 32] instead of float8_e4m3fn [out, 32]"),
        (lambda t: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][:, :16].contiguous()}), f"{LAYER}.weight is torch.float8_e4m3fn [128, 16] instead of float8_e4m3fn [out, 32]"),
        (lambda t: t[f"{LAYER}.weight_scale"].fill_(torch.inf), f"{LAYER}.weight_scale has nan or inf; the weights are damaged"),
        (lambda t: t[f"{LAYER}.weight"].view(torch.uint8)[3, 4:5].fill_(255), f"{LAYER}.weight has nan; the weights are damaged"),
        (lambda t: t.update({f"{LAYER}.input_scale": torch.ones(1)}), "1 tensor(s) have no place in the model that config.json describes: " + LAYER + ".input_scale"),
    ],
)  # fmt: skip
def test_damaged_parts_are_named(stored: Path, change: Callable[[dict[str, Tensor]], object], text: str) -> None:
    tensors = load_file(stored / "model.safetensors")
    change(tensors)
    save_file(tensors, stored / "model.safetensors", metadata={"format": "pt"})
    assert text in fault(stored)
