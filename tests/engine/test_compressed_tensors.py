"""Checkpoints whose linear layers compressed-tensors has packed: what they mean, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phi3_serve.engine.compressed_tensors import PACKED, SCALE, SHAPE, pack, unpack
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kernels.contract import QuantizedWeight
from phi3_serve.engine.kernels.quantize import quantize
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.quantization import QuantizedLinear
from phi3_serve.engine.stored_quantization import StoredQuantization, read_quantization
from phi3_serve.errors import CheckpointError
from tests.engine.asking import Answer, request
from tests.engine.parity import set_dequantized
from tests.oracle.reference import Oracle
from training.modules import load_with_modules

RECORD = Path(__file__).parents[1] / "data" / "quantized" / "compressed_tensors_0_20_1.json"
RECORDED: list[dict[str, Any]] = json.loads(RECORD.read_text())
LAYER = "model.layers.1.mlp.gate_up_proj"


def config_of(scheme: dict[str, Any]) -> dict[str, Any]:
    """The field of config.json, as llm-compressor writes it."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": scheme},
    }


def scheme(**weights: Any) -> dict[str, Any]:
    return {
        "targets": ["Linear"],
        "input_activations": None,
        "output_activations": None,
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, **weights},
    }


@pytest.mark.parametrize("layer", RECORDED, ids=lambda layer: f"{layer['scheme']['weights']} {layer['dtype']}")
def test_a_layer_is_what_the_library_makes_of_it(layer: dict[str, Any]) -> None:
    stored = read_quantization({"quantization_config": config_of(layer["scheme"])})
    assert stored is not None
    dtype = getattr(torch, layer["dtype"])
    parts = layer["stored"]
    packed, scale = torch.tensor(parts["weight_packed"], dtype=torch.int32), torch.tensor(parts["weight_scale"])
    weight = unpack({PACKED: packed, SCALE: scale.to(dtype)}, parts["weight_shape"][1], stored)
    assert weight.bits == layer["scheme"]["weights"]["num_bits"]
    assert weight.scales.dtype == (torch.bfloat16 if weight.bits == 4 and dtype == torch.bfloat16 else torch.float32)
    assert torch.equal(weight.dequantized().to(dtype), torch.tensor(layer["unpacked"]).to(dtype))
    again = pack(weight)
    assert torch.equal(again[PACKED], packed)
    assert again[SHAPE].tolist() == parts["weight_shape"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"quant_method": "bitsandbytes"}, "quantization_config says that the weights are quantised (bitsandbytes); of quantised weights, only pack-quantized and float-quantized of compressed-tensors, gptq and awq are read"),
        ({"format": "int-quantized"}, "quantization_config.format is 'int-quantized'; it must be 'pack-quantized' or 'float-quantized'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "quantization_config.kv_cache_scheme is {'num_bits': 8}; it must be null"),
        ({"config_groups": {}}, "quantization_config.config_groups is {}; it must have one group of layers"),
        ({"config_groups": {"a": scheme(), "b": scheme()}}, "quantization_config.config_groups is {'a': {"),
        ({"config_groups": {"a": {**scheme(), "targets": ["re:.*down"]}}}, "quantization_config.config_groups.a.targets is ['re:.*down']; it must be ['Linear']"),
        ({"config_groups": {"a": {**scheme(), "input_activations": {}}}}, "quantization_config.config_groups.a.input_activations is {}; it must be null"),
        ({"config_groups": {"a": scheme(num_bits=3)}}, "quantization_config.config_groups.a.weights.num_bits is 3; it must be 4 or 8"),
        ({"config_groups": {"a": scheme(type="float")}}, "quantization_config.config_groups.a.weights.type is 'float'; it must be 'int'"),
        ({"config_groups": {"a": scheme(symmetric=False)}}, "quantization_config.config_groups.a.weights.symmetric is False; it must be True"),
        ({"config_groups": {"a": scheme(actorder="group")}}, "quantization_config.config_groups.a.weights.actorder is 'group'; it must be null or 'weight' or 'static'"),
        ({"config_groups": {"a": scheme(strategy="tensor")}}, "quantization_config.config_groups.a.weights.strategy is 'tensor'; it must be 'group' or 'channel'"),
        ({"config_groups": {"a": scheme(num_bits=8)}}, "quantization_config.config_groups.a.weights.strategy is 'group'; it must be 'channel'"),
        ({"config_groups": {"a": scheme(group_size=48)}}, "quantization_config.config_groups.a.weights.group_size is 48; it must be a multiple of 32"),
        ({"config_groups": {"a": {"targets": ["Linear"]}}}, "quantization_config.config_groups.a.weights.type is None; it must be 'int'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(change: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_quantization({"quantization_config": {**config_of(scheme()), **change}})
    assert caught.value.message.startswith(text)
    assert "\n" not in caught.value.message


def test_what_is_read() -> None:
    assert read_quantization({"quantization_config": None}) is None
    assert read_quantization({"quantization_config": config_of(scheme(group_size=128))}) == StoredQuantization(
        "compressed-tensors", 4, 128
    )
    older = {"compression_config": config_of(scheme(num_bits=8, strategy="channel", group_size=None))}
    assert read_quantization(older) == StoredQuantization("compressed-tensors", 8, None)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture(params=[4, 8])
def packed(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> tuple[Path, LoadedModel]:
    """A checkpoint whose layers are packed, and transformers' model with the weights that they mean."""
    directory = Path(shutil.copytree(checkpoint, tmp_path / "packed"))
    whole = load_with_modules(checkpoint)
    tensors = load_file(directory / "model.safetensors")
    for path, module in whole.model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            weight = quantize(module.weight.detach(), request.param)
            del tensors[f"{path}.weight"]
            tensors |= {f"{path}.{part}": tensor for part, tensor in pack(weight).items()}
            module.weight.data = weight.dequantized()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": 8, "strategy": "channel", "group_size": None} if request.param == 8 else {}
    edit(directory / "config.json", lambda c: c.update(quantization_config=config_of(scheme(**weights))))
    return directory, whole


@pytest.mark.parametrize("quantization", ["none", "auto", "the same"])
def test_a_packed_checkpoint_answers_as_transformers_does(packed: tuple[Path, LoadedModel], quantization: str) -> None:
    directory, whole = packed
    bits = 4 if json.loads((directory / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] == 4 else 8  # fmt: skip
    wanted = f"int{bits}" if quantization == "the same" else quantization
    loaded = load("packed", str(directory), None, device="cpu", dtype="float32", quantization=wanted)
    assert loaded.quantization == f"int{bits}"
    assert loaded.weight_format == f"compressed-tensors: {bits} bits{'' if bits == 8 else ' in groups of 32'}"
    layers = {path: m for path, m in loaded.model.named_modules() if isinstance(m, QuantizedLinear)}
    weights = [module.packed.unpacked() for path, module in layers.items() if path != "lm_head"]
    assert {weight.bits for weight in weights if isinstance(weight, QuantizedWeight)} == {bits}
    for path, module in layers.items():
        if path != "lm_head":
            assert torch.equal(module.dequantized(), whole.model.get_submodule(path).weight)
    set_dequantized(whole.model, loaded.model)  # the embedding and the head, which 8 bits round
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=64, token_budget=64, max_rows=16))
    oracle = Oracle(whole)
    for number in range(4):
        made = request(whole, prompt=(5, 9, 300 + number), max_new_tokens=20, do_sample=False)
        theirs: Any = oracle.answer(made)
        assert Answer(engine, made).ids() == [s.token_ids for s in theirs.sequences]
    engine.close()


def loading_fault(directory: Path, **given: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(directory), None, **({"device": "cpu", "dtype": "auto"} | given))
    assert "\n" not in caught.value.message
    return caught.value.message


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("packed", [4], indirect=True)
def test_another_quantization_is_refused(packed: tuple[Path, LoadedModel]) -> None:
    directory, _ = packed
    assert loading_fault(directory, quantization="int8") == (
        "mine: quantization is int8, but the checkpoint has weights in 4 bits; allowed are int4 and auto"
    )


@pytest.mark.parametrize("packed", [4], indirect=True)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{LAYER}.weight_scale"), "1 tensor(s) that config.json requires are missing: " + LAYER + ".weight"),
        (lambda t: t.update({f"{LAYER}.weight_scale": torch.ones(128, 2)}), f"{LAYER}.weight_scale has [128, 2] instead of [128, 1]"),
        (lambda t: t.update({f"{LAYER}.weight_packed": torch.ones(128, 3, dtype=torch.int32)}), f"{LAYER}.weight_packed is torch.int32 [128, 3] instead of int32 [out, 4]"),
        (lambda t: t[f"{LAYER}.weight_scale"].fill_(torch.nan), f"{LAYER}.weight_scale has nan or inf; the weights are damaged"),
        (lambda t: t.update({f"{LAYER}.weight_packed": t[f"{LAYER}.weight_packed"][:64].clone()}), "1 tensor(s) have another shape than config.json requires: " + LAYER + ".weight has [64, 32] instead of [128, 32]"),
        (lambda t: t.update({f"{LAYER}.weight_g_idx": torch.zeros(32, dtype=torch.int32)}), "1 tensor(s) have no place in the model that config.json describes: " + LAYER + ".weight_g_idx"),
    ],
)  # fmt: skip
def test_damaged_parts_are_named(
    packed: tuple[Path, LoadedModel], change: Callable[[dict[str, Tensor]], object], text: str
) -> None:
    directory, _ = packed
    rewrite(directory, change)
    assert text in loading_fault(directory)


@pytest.mark.parametrize("packed", [4], indirect=True)
def test_parts_that_config_json_does_not_announce_are_refused(packed: tuple[Path, LoadedModel]) -> None:
    directory, _ = packed
    edit(directory / "config.json", lambda c: c.pop("quantization_config"))
    assert ", as in quantised weights; only F64, F32, F16, BF16 are read" in loading_fault(directory)
