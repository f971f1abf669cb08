"""Records layers as compressed-tensors packs and unpacks them. Run once, with that library beside the project's own:

    pip install --target /tmp/ct --no-deps compressed-tensors==0.20.1 loguru
    PYTHONPATH=/tmp/ct python tests/data/quantized/record.py

It writes compressed_tensors_0_20_1.json beside itself, and compressed_tensors_fp8_0_20_1.json with layers in float8, as
bytes: for each layer its scheme, the stored tensors, and the weight that the library makes of them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.naive_quantized.base import FloatQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

RECORD = Path(__file__).parent / "compressed_tensors_0_20_1.json"
RECORD_OF_FP8 = Path(__file__).parent / "compressed_tensors_fp8_0_20_1.json"
WEIGHTS: tuple[dict[str, Any], ...] = (
    {"num_bits": 4, "strategy": "group", "group_size": 32},
    {"num_bits": 4, "strategy": "group", "group_size": 64},
    {"num_bits": 4, "strategy": "channel"},
    {"num_bits": 8, "strategy": "channel"},
)


def recorded(weights: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    args = QuantizationArgs(type="int", symmetric=True, **weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    inputs = 64 if weights["strategy"] == "group" else 70  # no multiple of a word's weights
    weight = torch.randn(5, inputs).to(dtype)
    groups = inputs // weights.get("group_size", inputs)
    largest = weight.reshape(5, groups, -1).abs().amax(2)
    scale = (largest / (2 ** (args.num_bits - 1) - 1)).to(dtype)
    stored = PackedQuantizationCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    unpacked = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    return {
        "scheme": scheme.model_dump(mode="json"),
        "dtype": str(dtype).removeprefix("torch."),
        "stored": {name: tensor.tolist() for name, tensor in stored.items()},
        "unpacked": unpacked.tolist(),
    }


def recorded_in_fp8(strategy: str, dtype: torch.dtype) -> dict[str, Any]:
    form: dict[str, Any] = {"type": "float", "num_bits": 8, "symmetric": True}
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**form, strategy=strategy),
        input_activations=QuantizationArgs(**form, strategy="token", dynamic=True),
    )
    weight = torch.randn(5, 20).to(dtype)
    largest = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max()[None]
    stored = FloatQuantizationCompressor.compress({"weight": weight, "weight_scale": (largest / 448).to(dtype)}, scheme)
    unpacked = FloatQuantizationCompressor.decompress(dict(stored), scheme)["weight"]
    return {
        "scheme": scheme.model_dump(mode="json"),
        "dtype": str(dtype).removeprefix("torch."),
        "stored": {
            "weight": stored["weight"].view(torch.uint8).tolist(),
            "weight_scale": stored["weight_scale"].tolist(),
        },
        "unpacked": unpacked.tolist(),
    }


if __name__ == "__main__":
    torch.manual_seed(20261130)
    layers = [recorded(weights, dtype) for weights in WEIGHTS for dtype in (torch.bfloat16, torch.float16)]
    RECORD.write_text(json.dumps(layers) + "\n")
    layers = [recorded_in_fp8(strategy, torch.bfloat16) for strategy in ("channel", "tensor")]
    RECORD_OF_FP8.write_text(json.dumps(layers) + "\n")
