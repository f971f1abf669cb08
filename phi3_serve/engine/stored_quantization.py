"""How config.json says that weights are stored in fewer bits. Plain Python.

Of the formats in use, four are read: pack-quantized of the library compressed-tensors, which llm-compressor writes, in
4 or 8 bits; its float-quantized, which is fp8 and rounds activations, too; GPTQ, and AWQ in its version gemm, both in
4 bits.
"""

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from phi3_serve.catalogue import FP8
from phi3_serve.errors import CheckpointError

# compression_config: compressed-tensors before 2025; quantization: MLX
KEYS = ("quantization_config", "compression_config", "quantization")
METHOD: Literal["compressed-tensors"] = "compressed-tensors"
FORMAT, FP8_FORMAT = "pack-quantized", "float-quantized"
SMALLEST_GROUP = 32  # inputs; that of the kernels


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """How linear layers are stored. Those that the checkpoint leaves out have an ordinary weight."""

    method: Literal["compressed-tensors", "compressed-tensors fp8", "gguf", "gptq", "gptq_v2", "awq"]
    bits: Literal[8, 4]  # the fewest
    group_size: int | None  # inputs that share a scale; None: all, or as the type of a tensor in a GGUF file says

    @property
    def quantization(self) -> str:
        """What the operator calls it."""
        return FP8 if self.method == "compressed-tensors fp8" else f"int{self.bits}"

    @property
    def in_words(self) -> str:
        """For operators."""
        if self.quantization == FP8:
            return self.method
        groups = "" if self.group_size is None else f" in groups of {self.group_size}"
        return f"{self.method}: {self.bits} bits{groups}"


def read_quantization(config: Mapping[str, Any]) -> StoredQuantization | None:
    """What ``config``, the content of config.json, says; None if weights are stored as floats.

    Raises:
        CheckpointError: the format is not read. The message begins with the field.
    """
    found = [(key, config[key]) for key in KEYS if config.get(key) is not None]
    if not found:
        return None
    key, given = found[0]
    method = given.get("quant_method") if isinstance(given, dict) else None
    if isinstance(method, str) and method in _READERS:
        return _READERS[method](key, given)
    raise CheckpointError(
        f"{key} says that the weights are quantised ({method or 'no quant_method is given'}); "
        f"of quantised weights, only {FORMAT} and {FP8_FORMAT} of {METHOD}, gptq and awq are read"
    )


def config_of_copy(quantization: str) -> dict[str, Any]:
    """The field ``KEYS[0]`` of a checkpoint whose linear layers are stored in int8, int4 or fp8.

    It is what llm-compressor writes, with scales for groups as small as those that weights are rounded to at a load.
    """
    symmetric: dict[str, Any] = {"type": "int", "symmetric": True, "dynamic": False, "group_size": None}
    weights: dict[str, Any] = {
        "int8": {**symmetric, "num_bits": 8, "strategy": "channel"},
        "int4": {**symmetric, "num_bits": 4, "strategy": "group", "group_size": SMALLEST_GROUP},
        FP8: {**symmetric, "num_bits": 8, "strategy": "channel", "type": "float"},
    }[quantization]
    inputs = {**weights, "strategy": "token", "dynamic": True} if quantization == FP8 else None
    return {
        "quant_method": METHOD,
        "format": FP8_FORMAT if quantization == FP8 else FORMAT,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": inputs,
                "output_activations": None,
            }
        },
    }


def _compressed_tensors(key: str, given: Mapping[str, Any]) -> StoredQuantization:
    _require(f"{key}.format", given.get("format"), FORMAT, FP8_FORMAT)
    _require(f"{key}.kv_cache_scheme", given.get("kv_cache_scheme"), None)
    groups = given.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1 or not isinstance(next(iter(groups.values())), dict):
        raise CheckpointError(f"{key}.config_groups is {reprlib.repr(groups)}; it must have one group of layers")
    ((name, group),) = groups.items()
    where = f"{key}.config_groups.{name}"
    _require(f"{where}.targets", group.get("targets"), ["Linear"])
    _require(f"{where}.output_activations", group.get("output_activations"), None)
    weights = group.get("weights") if isinstance(group.get("weights"), dict) else {}
    if given["format"] == FP8_FORMAT:
        return _fp8(where, weights, group.get("input_activations"))
    _require(f"{where}.input_activations", group.get("input_activations"), None)
    return _of_weights(f"{where}.weights", weights)


def _fp8(where: str, weights: Mapping[str, Any], inputs: object) -> StoredQuantization:
    """e4m3, with a scale for each output or for all, and for each row of the activations when it comes."""
    if not isinstance(inputs, dict):
        raise CheckpointError(
            f"{where}.input_activations is {reprlib.repr(inputs)}; it must have 8 bits for each token"
        )
    for part, given, strategies in (
        ("weights", weights, ("channel", "tensor")),
        ("input_activations", inputs, ("token",)),
    ):
        _require(f"{where}.{part}.type", given.get("type"), "float")
        _require(f"{where}.{part}.num_bits", given.get("num_bits"), 8)
        _require(f"{where}.{part}.symmetric", given.get("symmetric"), True)
        _require(f"{where}.{part}.strategy", given.get("strategy"), *strategies)
    _require(f"{where}.input_activations.dynamic", inputs.get("dynamic"), True)
    return StoredQuantization("compressed-tensors fp8", 8, None)


def _of_weights(where: str, weights: Mapping[str, Any]) -> StoredQuantization:
    _require(f"{where}.type", weights.get("type"), "int")
    _require(f"{where}.symmetric", weights.get("symmetric"), True)
    _require(f"{where}.num_bits", weights.get("num_bits"), 4, 8)
    _require(f"{where}.actorder", weights.get("actorder"), None, "weight", "static")  # else inputs change places
    bits: Literal[8, 4] = 8 if weights["num_bits"] == 8 else 4
    if bits == 8:
        _require(f"{where}.strategy", weights.get("strategy"), "channel")
        return StoredQuantization(METHOD, 8, None)
    _require(f"{where}.strategy", weights.get("strategy"), "group", "channel")
    if weights["strategy"] == "channel":
        return StoredQuantization(METHOD, 4, None)
    size = weights.get("group_size")
    if not isinstance(size, int) or size < SMALLEST_GROUP or size % SMALLEST_GROUP:
        raise CheckpointError(f"{where}.group_size is {reprlib.repr(size)}; it must be a multiple of {SMALLEST_GROUP}")
    return StoredQuantization(METHOD, 4, size)


def _gptq(key: str, given: Mapping[str, Any]) -> StoredQuantization:
    """As AutoGPTQ and GPTQModel write it."""
    _require(f"{key}.bits", given.get("bits"), 4)
    _require(f"{key}.desc_act", given.get("desc_act"), None, False)  # else inputs change places
    _require(f"{key}.checkpoint_format", given.get("checkpoint_format"), None, "gptq", "gptq_v2")
    _require(f"{key}.pack_dtype", given.get("pack_dtype"), None, "int32")
    _require(f"{key}.dynamic", given.get("dynamic"), None, {})  # other bits for some layers
    version: Literal["gptq", "gptq_v2"] = "gptq_v2" if given.get("checkpoint_format") == "gptq_v2" else "gptq"
    return StoredQuantization(version, 4, _group_size(key, given))


def _awq(key: str, given: Mapping[str, Any]) -> StoredQuantization:
    """As AutoAWQ writes it."""
    _require(f"{key}.bits", given.get("bits"), 4)
    _require(f"{key}.version", given.get("version"), "gemm", "GEMM")
    _require(f"{key}.zero_point", given.get("zero_point"), True)
    return StoredQuantization("awq", 4, _group_size(key, given))


def _group_size(key: str, given: Mapping[str, Any]) -> int | None:
    size = given.get("group_size")
    if size == -1:
        return None
    if not isinstance(size, int) or size < SMALLEST_GROUP or size % SMALLEST_GROUP:
        raise CheckpointError(
            f"{key}.group_size is {reprlib.repr(size)}; it must be a multiple of {SMALLEST_GROUP}, or -1"
        )
    return size


_READERS: Mapping[str, Callable[[str, Mapping[str, Any]], StoredQuantization]] = {
    METHOD: _compressed_tensors,
    "gptq": _gptq,
    "awq": _awq,
}


def _require(field: str, value: object, *allowed: object) -> None:
    if not any(type(value) is type(one) and value == one for one in allowed):
        words = " or ".join("null" if one is None else repr(one) for one in allowed)
        raise CheckpointError(f"{field} is {reprlib.repr(value)}; it must be {words}")
