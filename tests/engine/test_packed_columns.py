"""Checkpoints that GPTQ and AWQ have quantised: what they mean, and what is refused.

``pack_gptq`` and ``pack_awq`` are written after the libraries: ``QuantLinear.pack`` of AutoGPTQ
(auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py) and ``WQLinear_GEMM.from_linear`` of AutoAWQ
(awq/modules/linear/gemm.py).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kernels.contract import BlockedWeight, QuantizedWeight
from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.packed_columns import unpack_awq, unpack_gptq
from phi3_serve.engine.quantization import QuantizedLinear
from phi3_serve.engine.stored_quantization import StoredQuantization, read_quantization
from phi3_serve.errors import CheckpointError
from tests import random_checkpoint
from tests.engine.asking import Answer, request
from tests.engine.parity import set_dequantized
from tests.oracle.reference import Oracle
from tests.random_checkpoint import Shape
from training.modules import load_with_modules

LAYER = "model.layers.1.mlp.gate_up_proj"
Array = np.ndarray[Any, np.dtype[Any]]
GPTQ_CONFIG = {
    "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "damp_percent": 0.01,
    "true_sequential": True, "static_groups": False, "checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False,
}  # fmt: skip
AWQ_CONFIG = {
    "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip


def rounded(weight: Tensor, group: int, *, symmetric: bool) -> tuple[Array, Array, Array]:
    """Numbers [in, out], zeros and scales [groups, out] of ``weight`` [out, in]."""
    groups = weight.float().T.reshape(-1, group, len(weight))
    if symmetric:
        scales = (groups.abs().amax(1) / 7).half()
        zeros = torch.full_like(scales, 8)
    else:
        least, most = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
        scales = ((most - least) / 15).half()
        zeros = (-least / scales.float()).round().clamp(1, 15)
    numbers = ((groups / scales.float()[:, None]).round() + zeros[:, None]).clamp(0, 15)
    return numbers.reshape(-1, len(weight)).numpy().astype(np.uint32), zeros.numpy().astype(np.uint32), scales.numpy()


def meant(numbers: Array, zeros: Array, scales: Array) -> Tensor:
    """The weight [out, in], in float32, where products of a scale and a number are exact."""
    group = len(numbers) // len(zeros)
    of_inputs = [np.repeat(part.astype(np.float32), group, axis=0) for part in (zeros, scales)]
    return torch.from_numpy(((numbers.astype(np.float32) - of_inputs[0]) * of_inputs[1]).T.copy())


def packed(numbers: Array, order: tuple[int, ...] = tuple(range(8))) -> Array:
    """Eight columns of ``numbers`` in each word; the one at ``order[i]`` is at bit 4 i."""
    words = np.zeros((len(numbers), numbers.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for i in range(8):
            words[:, column] |= numbers[:, column * 8 + order[i]] << np.uint32(4 * i)
    return words.view(np.int32)


def pack_gptq(numbers: Array, zeros: Array, scales: Array, *, version: int = 1) -> dict[str, Tensor]:
    group = len(numbers) // len(zeros)
    parts = {
        "qweight": packed(numbers.T).T.copy(),
        "qzeros": packed(zeros - np.uint32(1 if version == 1 else 0)),
        "scales": scales,
        "g_idx": np.array([i // group for i in range(len(numbers))], np.int32),
    }
    return {name: torch.from_numpy(part) for name, part in parts.items()}


def pack_awq(numbers: Array, zeros: Array, scales: Array) -> dict[str, Tensor]:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    parts = {"qweight": packed(numbers, order), "qzeros": packed(zeros, order), "scales": scales}
    return {name: torch.from_numpy(part) for name, part in parts.items()}


@pytest.mark.parametrize("group", [32, 64, 128, 256])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", ["gptq", "gptq_v2", "awq"])
def test_a_layer_is_what_was_packed(method: Any, group: int, symmetric: bool) -> None:
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(group)) * 0.05
    parts = rounded(weight, group, symmetric=symmetric)
    stored = StoredQuantization(method, 4, None if group == 256 else group)
    if method == "awq":
        found = unpack_awq(pack_awq(*parts), 256, stored)
    else:
        version = 1 if method == "gptq" else 2
        found = unpack_gptq(pack_gptq(*parts, version=version), 256, stored, added_to_zeros=2 - version)
    assert isinstance(found, QuantizedWeight if symmetric else BlockedWeight)
    expected = meant(*parts)
    assert float((expected - weight).norm() / weight.norm()) < 0.15
    assert torch.equal(found.dequantized(), expected)
    in_memory = select_kernels(torch.device("cpu"), torch.float32, 64).pack(found).num_bytes
    assert in_memory * 8 / weight.numel() == (4.5 if symmetric else 4.5 + 32 / group)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (GPTQ_CONFIG, StoredQuantization("gptq", 4, 128)),
        (GPTQ_CONFIG | {"checkpoint_format": "gptq_v2"}, StoredQuantization("gptq_v2", 4, 128)),
        (GPTQ_CONFIG | {"group_size": -1}, StoredQuantization("gptq", 4, None)),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}, StoredQuantization("gptq", 4, 32)),
        (AWQ_CONFIG, StoredQuantization("awq", 4, 128)),
        (AWQ_CONFIG | {"version": "GEMM", "group_size": 64}, StoredQuantization("awq", 4, 64)),
    ],
)
def test_what_is_read(config: dict[str, Any], expected: StoredQuantization) -> None:
    assert read_quantization({"quantization_config": config}) == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (GPTQ_CONFIG | {"bits": 3}, "bits is 3; it must be 4"),
        (GPTQ_CONFIG | {"desc_act": True}, "desc_act is True; it must be null or False"),
        (GPTQ_CONFIG | {"group_size": 100}, "group_size is 100; it must be a multiple of 32, or -1"),
        (GPTQ_CONFIG | {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; it must be null or 'gptq' or 'gptq_v2'"),
        (GPTQ_CONFIG | {"pack_dtype": "int8"}, "pack_dtype is 'int8'; it must be null or 'int32'"),
        (AWQ_CONFIG | {"version": "gemv"}, "version is 'gemv'; it must be 'gemm' or 'GEMM'"),
        (AWQ_CONFIG | {"zero_point": False}, "zero_point is False; it must be True"),
        (AWQ_CONFIG | {"bits": 8}, "bits is 8; it must be 4"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(config: dict[str, Any], text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_quantization({"quantization_config": config})
    assert caught.value.message == f"quantization_config.{text}"


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


METHODS = {
    "gptq": (GPTQ_CONFIG, pack_gptq, True, "gptq: 4 bits in groups of 128"),
    "gptq asymmetric": (GPTQ_CONFIG | {"sym": False}, pack_gptq, False, "gptq: 4 bits in groups of 128"),
    "awq": (AWQ_CONFIG, pack_awq, False, "awq: 4 bits in groups of 128"),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def both(method: str, tmp_path: Path) -> tuple[Path, LoadedModel]:
    """A checkpoint whose layers are packed, and transformers' model with the weights that they mean."""
    config, pack, symmetric, _ = METHODS[method]
    directory = tmp_path / "packed"
    random_checkpoint.make(directory, Shape(hidden_size=128, intermediate_size=256), seed=5)
    whole = load_with_modules(directory)
    tensors = load_file(directory / "model.safetensors")
    for path, module in whole.model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            parts = rounded(module.weight.detach(), 128, symmetric=symmetric)
            del tensors[f"{path}.weight"]
            tensors |= {f"{path}.{name}": tensor for name, tensor in pack(*parts).items()}
            module.weight.data = meant(*parts)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | {"quantization_config": config}))
    return directory, whole


def answers_agree(directory: Path, whole: LoadedModel, weight_format: str) -> None:
    loaded = load("packed", str(directory), None, device="cpu", dtype="float32")
    assert (loaded.quantization, loaded.weight_format) == ("int4", weight_format)
    for path, module in loaded.model.named_modules():
        if isinstance(module, QuantizedLinear) and path != "lm_head":
            weight = module.packed.unpacked()
            assert isinstance(weight, QuantizedWeight | BlockedWeight)
            assert weight.bits == 4
            torch.testing.assert_close(module.dequantized(), whole.model.get_submodule(path).weight, rtol=0, atol=1e-6)
    set_dequantized(whole.model, loaded.model)  # the embedding and the head, which 8 bits round
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=64, token_budget=64, max_rows=16))
    oracle = Oracle(whole)
    for number in range(4):
        made = request(whole, prompt=(5, 9, 300 + number), max_new_tokens=20, do_sample=False)
        theirs: Any = oracle.answer(made)
        assert Answer(engine, made).ids() == [s.token_ids for s in theirs.sequences]
    engine.close()


def test_a_packed_checkpoint_answers_as_transformers_does(both: tuple[Path, LoadedModel], method: str) -> None:
    answers_agree(*both, METHODS[method][3])


@pytest.mark.parametrize("method", ["gptq"], indirect=True)
def test_the_config_of_older_checkpoints_is_a_file_of_its_own(both: tuple[Path, LoadedModel]) -> None:
    directory, whole = both
    config = json.loads((directory / "config.json").read_text())
    of_its_own = {k: v for k, v in config.pop("quantization_config").items() if k != "quant_method"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "quantize_config.json").write_text(json.dumps(of_its_own))
    answers_agree(directory, whole, "gptq: 4 bits in groups of 128")
    (directory / "quantize_config.json").write_text(json.dumps(of_its_own | {"desc_act": True}))
    assert fault(directory) == f"{directory}/quantize_config.json: desc_act is True; it must be null or False"


def fault(directory: Path, **given: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(directory), None, **({"device": "cpu", "dtype": "auto"} | given))
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("method", ["gptq"], indirect=True)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop(f"{LAYER}.scales"), "2 tensor(s) that"),
        (lambda t: t.update({f"{LAYER}.qzeros": torch.zeros(2, 64, dtype=torch.int32)}), f"{LAYER}.qzeros has [2, 64] instead of [1, 64]"),
        (lambda t: t.update({f"{LAYER}.qweight": torch.zeros(16, 512)}), f"{LAYER}.qweight is torch.float32 instead of torch.int32"),
        (lambda t: t[f"{LAYER}.scales"].fill_(torch.nan), f"{LAYER}.scales has numbers that float16 does not have, or nan; the weights are damaged"),
        (lambda t: t[f"{LAYER}.g_idx"].copy_(torch.arange(128).flip(0) // 64), f"{LAYER}.g_idx is not in the order of the inputs, as with desc_act, which is not read"),
        (lambda t: t.update({f"{LAYER}.bias": torch.ones(512)}), "1 tensor(s) have no place in the model that config.json describes: " + LAYER + ".bias"),
    ],
)  # fmt: skip
def test_damaged_parts_are_named(
    both: tuple[Path, LoadedModel], change: Callable[[dict[str, Tensor]], object], text: str
) -> None:
    directory, _ = both
    rewrite(directory, change)
    assert text.replace("2 tensor(s) that", "tensor(s) that config.json requires are missing") in fault(directory)


@pytest.mark.parametrize("method", ["awq"], indirect=True)
def test_another_quantization_is_refused(both: tuple[Path, LoadedModel]) -> None:
    directory, _ = both
    assert fault(directory, quantization="int8") == (
        "mine: quantization is int8, but the checkpoint has weights in 4 bits; allowed are int4 and auto"
    )
