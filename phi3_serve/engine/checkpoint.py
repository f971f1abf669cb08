"""A checkpoint directory, checked before anything in it is loaded.

Each fault is a CheckpointError with one line that names the file. Only headers are read, no tensors.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from phi3_serve.errors import CheckpointError

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
# The control tokens that every Phi-3 conversation needs.
REQUIRED_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory whose parts are complete and belong together."""

    directory: Path
    config: Mapping[str, Any]
    tensor_bytes: Mapping[str, int]  # size on disk of each tensor

    @property
    def total_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(self.tensor_bytes.values())


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check ``directory``.

    Raises:
        CheckpointError: it does not exist, is not a Phi-3 checkpoint, or a part is missing or truncated.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    config = _check_config(directory / CONFIG)
    tensor_bytes: dict[str, int] = {}
    for shard in _shards(directory):
        tensor_bytes |= _tensor_bytes(shard)
    _check_index_is_covered(directory, tensor_bytes)
    _check_tokenizer(directory / TOKENIZER, vocab_size=config["vocab_size"])
    return Checkpoint(directory, config, tensor_bytes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: file is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def _check_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    model_type = config.get("model_type")
    if model_type != "phi3":
        raise CheckpointError(f"{path}: model_type is {model_type!r}; only 'phi3' is served")
    architectures = config.get("architectures") or ["Phi3ForCausalLM"]
    if architectures != ["Phi3ForCausalLM"]:
        raise CheckpointError(f"{path}: architectures is {architectures}; only ['Phi3ForCausalLM'] is served")
    vocab_size = config.setdefault("vocab_size", 32_064)  # Phi3Config's default
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < 1:
        raise CheckpointError(f"{path}: vocab_size is {vocab_size!r}; it must be a positive integer")
    return config


def _shards(directory: Path) -> list[Path]:
    if (directory / SHARD_INDEX).exists():
        index = _read_json(directory / SHARD_INDEX)
        names = sorted(set(_weight_map(index, directory / SHARD_INDEX).values()))
        return [directory / name for name in names]
    if (directory / SINGLE_FILE).exists():
        return [directory / SINGLE_FILE]
    if pickled := sorted(directory.glob("*.bin")):
        raise CheckpointError(
            f"{pickled[0]}: pickled weights could run code and are refused; convert them to safetensors"
        )
    raise CheckpointError(f"{directory / SINGLE_FILE}: file is missing, and there is no {SHARD_INDEX} either")


def _weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) and Path(shard).name == shard for shard in weight_map.values()
    ):
        raise CheckpointError(f"{path}: weight_map must map each tensor to the name of a file in the same directory")
    return weight_map


def _tensor_bytes(shard: Path) -> dict[str, int]:
    """The size of each tensor, from the safetensors header: 8 bytes with its length, then JSON."""
    try:
        size = shard.stat().st_size
        with shard.open("rb") as file:
            first = file.read(8)
            header_bytes = struct.unpack("<Q", first)[0] if len(first) == 8 else size
            if 8 + header_bytes > size:
                raise CheckpointError(f"{shard}: truncated within its header, at {size:,} bytes")
            header = cast(dict[str, dict[str, Any]], json.loads(file.read(header_bytes)))
        spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        needed = 8 + header_bytes + max((end for _, end in spans.values()), default=0)
        tensor_bytes = {name: end - begin for name, (begin, end) in spans.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{shard}: file is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{shard}: cannot be read as safetensors: {error}") from None
    if size < needed:
        raise CheckpointError(f"{shard}: truncated at {size:,} of {needed:,} bytes")
    return tensor_bytes


def _check_index_is_covered(directory: Path, tensor_bytes: Mapping[str, int]) -> None:
    if not (directory / SHARD_INDEX).exists():
        return
    for tensor, shard in _weight_map(_read_json(directory / SHARD_INDEX), directory / SHARD_INDEX).items():
        if tensor not in tensor_bytes:
            raise CheckpointError(f"{directory / shard}: tensor {tensor} is missing, although {SHARD_INDEX} lists it")


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    """Check that the tokenizer is Phi-3's and that each of its ids has an embedding."""
    tokenizer = _read_json(path)
    added = {t.get("content"): t.get("id") for t in tokenizer.get("added_tokens") or () if isinstance(t, dict)}
    for token in REQUIRED_TOKENS:
        if token not in added:
            raise CheckpointError(
                f"{path}: control token {token} is missing; this tokenizer does not belong to this checkpoint"
            )
    vocab = (tokenizer.get("model") or {}).get("vocab")
    ids = [i for i in (*added.values(), *(vocab.values() if isinstance(vocab, dict) else ())) if isinstance(i, int)]
    if max(ids) >= vocab_size:
        raise CheckpointError(
            f"{path}: has token id {max(ids)}, but vocab_size in {CONFIG} is {vocab_size}; "
            "this tokenizer does not belong to this checkpoint"
        )
