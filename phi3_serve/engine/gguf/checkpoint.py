"""A GGUF file, checked before anything in it is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFEndian, GGUFReader

from phi3_serve.engine.checkpoint import Checkpoint, StoredTensor
from phi3_serve.engine.checkpoint_config import check_config
from phi3_serve.engine.gguf.config import FACTORS, check_attention_factor, generation_config, model_config
from phi3_serve.engine.gguf.types import BITS, FLOATS, TYPES
from phi3_serve.engine.stored_quantization import StoredQuantization
from phi3_serve.errors import CheckpointError, CheckpointIncomplete

_NAMES = {  # of tensors, in a file and in Phi3ForCausalLM
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_NAMES_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_IN_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def open_gguf(path: Path) -> Checkpoint:
    """Check the file at ``path``. Only its header is read, and the factors of RoPE.

    Raises:
        CheckpointIncomplete: it does not exist, or a part is missing.
        CheckpointError: it is not a Phi-3 model, or not of a type that is read.
    """
    reader = _reader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    try:
        _check_file(reader, metadata)
        tensors = _tensors(path, reader)
        factors = {name: _factors(reader, tensor) for name, tensor in FACTORS.items() if tensor in tensors}
        named = {_parameter(n): tensor for n, tensor in tensors.items() if n not in FACTORS.values()}
        config = model_config(metadata, {name: tensor.shape for name, tensor in named.items()}, factors)
        quantization = _quantization(named)
        if quantization is None:
            config["dtype"] = FLOATS[_types(named)[-1]]
        check_config(config)
        check_attention_factor(metadata, config)
    except CheckpointError as error:
        raise type(error)(f"{path}: {error.message}") from None
    return Checkpoint(path, config, named, quantization, _described(named), metadata, generation_config(metadata))


def _reader(path: Path) -> GGUFReader:
    try:
        return GGUFReader(path)
    except FileNotFoundError:
        raise CheckpointIncomplete(f"{path}: file is missing") from None
    except OSError as error:
        raise CheckpointIncomplete(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # numpy raises any error on bytes that are no header
        problem = " ".join(str(error).split())
        raise CheckpointIncomplete(f"{path}: cannot be read as GGUF; it may be truncated: {problem}") from None


def _check_file(reader: GGUFReader, metadata: Mapping[str, Any]) -> None:
    if reader.endianess != GGUFEndian.LITTLE:
        raise CheckpointError("the file is big-endian; only little-endian files are read")
    if (count := metadata.get("split.count", 1)) > 1:
        raise CheckpointError(f"the file is one of {count} parts; join them with llama-gguf-split --merge")


def _tensors(path: Path, reader: GGUFReader) -> dict[str, StoredTensor]:
    """The tensors by their names in the file."""
    for tensor in reader.tensors:
        if tensor.tensor_type.name not in TYPES:
            raise CheckpointError(
                f"tensor {tensor.name} is stored as {tensor.tensor_type.name}; only {', '.join(TYPES)} are read"
            )
    return {
        tensor.name: StoredTensor(
            path,
            int(tensor.n_bytes),
            tuple(reversed(tensor.shape.tolist())),
            tensor.tensor_type.name,
            int(tensor.data_offset),
        )
        for tensor in reader.tensors
    }


def _factors(reader: GGUFReader, name: str) -> list[float]:
    tensor = next(tensor for tensor in reader.tensors if tensor.name == name)
    if tensor.tensor_type.name != "F32":
        raise CheckpointError(f"tensor {name} is stored as {tensor.tensor_type.name}; it must be F32")
    return [float(factor) for factor in np.ravel(tensor.data)]


def _parameter(name: str) -> str:
    """The name that ``Phi3ForCausalLM`` has for the tensor ``name``."""
    in_block = _IN_BLOCK.fullmatch(name)
    if in_block and in_block[2] in _NAMES_IN_BLOCK:
        return f"model.layers.{in_block[1]}.{_NAMES_IN_BLOCK[in_block[2]]}.weight"
    if name.removesuffix(".weight") in _NAMES and name.endswith(".weight"):
        return f"{_NAMES[name.removesuffix('.weight')]}.weight"
    raise CheckpointError(f"tensor {name} has no place in a Phi-3 model")


def _types(tensors: Mapping[str, StoredTensor]) -> list[str]:
    """The types of the matrices."""
    found = {tensor.dtype for tensor in tensors.values() if len(tensor.shape) == 2}
    return [name for name in TYPES if name in found]


def _quantization(tensors: Mapping[str, StoredTensor]) -> StoredQuantization | None:
    """That of the file; it is called after the fewest bits."""
    bits = [BITS[name] for name in _types(tensors) if name not in FLOATS]
    return StoredQuantization("gguf", min(bits), None) if bits else None


def _described(tensors: Mapping[str, StoredTensor]) -> str:
    return f"GGUF: {', '.join(_types(tensors))}"
