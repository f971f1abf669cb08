"""A checkpoint directory, checked before anything in it is loaded.

Each fault is a CheckpointError with one line that names the file. Only headers are read, no tensors.
"""

import json
import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from phi3_serve.engine.checkpoint_config import check_generation_config, read_config, read_json
from phi3_serve.engine.stored_quantization import KEYS, StoredQuantization, read_quantization
from phi3_serve.errors import CheckpointError, CheckpointIncomplete

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
GENERATION_CONFIG = "generation_config.json"
OLDER_QUANTIZATION = "quantize_config.json"
# Of the tokenizer; transformers reads them if they exist.
OPTIONAL_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MAX_HEADER_BYTES = 100_000_000  # as in safetensors
STORED_DTYPES = ("F64", "F32", "F16", "BF16")  # safetensors' names
PACKED_DTYPES = ("I32", "I64", "F8_E4M3")  # of the parts of quantised layers
# The control tokens that every Phi-3 conversation needs.
REQUIRED_TOKENS = ("<|user|>", "<|assistant|>", "<|end|>")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is, and its size."""

    file: Path
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str  # as the file names it
    offset: int = 0  # where its bytes begin, in a GGUF file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory or a GGUF file whose parts are complete and belong together."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    quantization: StoredQuantization | None  # of linear layers; None: they are stored as floats
    weight_format: str  # how the weights are stored, in words
    gguf: Mapping[str, Any] | None = None  # the metadata of a GGUF file
    generation_config: Mapping[str, Any] | None = None  # of a GGUF file

    @property
    def tensor_bytes(self) -> dict[str, int]:
        """Size on disk of each tensor."""
        return {name: tensor.num_bytes for name, tensor in self.tensors.items()}

    @property
    def total_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(self.tensor_bytes.values())

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def open_checkpoint(directory: Path) -> Checkpoint:
    """Check ``directory``.

    Raises:
        CheckpointIncomplete: it does not exist, or a part is missing or cannot be read.
        CheckpointError: it is not a Phi-3 checkpoint, or a part is damaged.
    """
    if not directory.is_dir():
        raise CheckpointIncomplete(f"{directory}: no such checkpoint directory")
    config = read_config(directory / CONFIG)
    _add_older_quantization(directory / OLDER_QUANTIZATION, config)
    if (directory / GENERATION_CONFIG).exists():
        check_generation_config(directory / GENERATION_CONFIG)
    for name in OPTIONAL_FILES:
        if (directory / name).exists():
            read_json(directory / name)
    quantization = read_quantization(config)
    for key in KEYS:
        config.pop(key, None)  # else transformers would look for its own reader
    tensors = _all_tensors(directory, STORED_DTYPES if quantization is None else (*STORED_DTYPES, *PACKED_DTYPES))
    _check_tokenizer(directory / TOKENIZER, vocab_size=config["vocab_size"])
    dtypes = sorted({tensor.dtype for tensor in tensors.values()})
    weight_format = f"safetensors: {', '.join(dtypes)}" if quantization is None else quantization.in_words
    return Checkpoint(directory, config, tensors, quantization, weight_format)


def _add_older_quantization(path: Path, config: dict[str, Any]) -> None:
    """Before GPTQ wrote its settings into config.json, they were in a file of their own."""
    if path.exists() and not any(config.get(key) is not None for key in KEYS):
        given = {"quant_method": "gptq", **read_json(path)}
        try:
            read_quantization({KEYS[0]: given})
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error.message.removeprefix(f'{KEYS[0]}.')}") from None
        config[KEYS[0]] = given


def _all_tensors(directory: Path, dtypes: Sequence[str]) -> dict[str, StoredTensor]:
    """The tensors of the file or of the shards that transformers would read."""
    if (directory / SINGLE_FILE).exists():
        return _tensors(directory / SINGLE_FILE, dtypes)
    if not (directory / SHARD_INDEX).exists():
        if pickled := sorted(directory.glob("*.bin")):
            raise CheckpointError(
                f"{pickled[0]}: pickled weights could run code and are refused; convert them to safetensors"
            )
        raise CheckpointIncomplete(f"{directory / SINGLE_FILE}: file is missing, and there is no {SHARD_INDEX} either")
    weight_map = _weight_map(directory / SHARD_INDEX)
    of_shards = {shard: _tensors(directory / shard, dtypes) for shard in sorted(set(weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in of_shards[shard]:
            raise CheckpointError(f"{directory / shard}: tensor {tensor} is missing, although {SHARD_INDEX} lists it")
    return {tensor: of_shards[shard][tensor] for tensor, shard in weight_map.items()}


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_safetensors_name, weight_map.values())):
        raise CheckpointError(
            f"{path}: weight_map must map each tensor to the name of a .safetensors file in the same directory"
        )
    return weight_map


def _is_safetensors_name(shard: object) -> bool:
    return isinstance(shard, str) and Path(shard).name == shard and shard.endswith(".safetensors")


class _Header(NamedTuple):
    """The header of a safetensors file: 8 bytes with the length of the JSON, then the JSON."""

    num_bytes: int  # of both
    entries: Mapping[str, Any]


def _tensors(shard: Path, allowed: Sequence[str]) -> dict[str, StoredTensor]:
    """The tensors in ``shard``, which must have one of the ``allowed`` dtypes."""
    try:
        size = shard.stat().st_size
        header = _read_header(shard, size)
        spans = {name: entry["data_offsets"] for name, entry in header.entries.items() if name != "__metadata__"}
        needed = header.num_bytes + max((end for _, end in spans.values()), default=0)
        if size < needed:
            raise CheckpointIncomplete(f"{shard}: truncated at {size:,} of {needed:,} bytes")
        with safe_open(shard, framework="np") as file:  # checks that shapes, dtypes and offsets agree
            names = set(file.keys())
        dtypes = {name: header.entries[name]["dtype"] for name in names}
        shapes = {name: tuple(header.entries[name]["shape"]) for name in names}
    except FileNotFoundError:
        raise CheckpointIncomplete(f"{shard}: file is missing") from None
    except OSError as error:
        raise CheckpointIncomplete(f"{shard}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{shard}: cannot be read as safetensors: {' '.join(str(error).split())}") from None
    for name, dtype in dtypes.items():
        if dtype not in allowed:
            raise CheckpointError(
                f"{shard}: tensor {name} is stored as {reprlib.repr(dtype)}, as in quantised weights; "
                f"only {', '.join(allowed)} are read"
            )
    return {n: StoredTensor(shard, end - begin, shapes[n], dtypes[n]) for n, (begin, end) in spans.items()}


def _read_header(shard: Path, size: int) -> _Header:
    with shard.open("rb") as file:
        first = file.read(8)
        num_bytes = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + num_bytes > size:
            raise CheckpointIncomplete(f"{shard}: truncated within its header, at {size:,} bytes")
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"the header has {num_bytes:,} bytes; the most is {MAX_HEADER_BYTES:,}")
        return _Header(8 + num_bytes, json.loads(file.read(num_bytes)))


def _check_tokenizer(path: Path, vocab_size: int) -> None:
    """Check that the tokenizer is Phi-3's and that each of its ids has an embedding."""
    read_json(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"{path}: cannot be read as a tokenizer: {' '.join(str(error).split())}") from None
    check_vocabulary(tokenizer, str(path), vocab_size=vocab_size)


def check_vocabulary(tokenizer: Tokenizer, where: str, *, vocab_size: int) -> None:
    """Check that ``tokenizer``, which is from ``where``, is Phi-3's and that each of its ids has an embedding."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    for token in REQUIRED_TOKENS:
        if token not in vocabulary:
            raise CheckpointError(
                f"{where}: control token {token} is missing; this tokenizer does not belong to this checkpoint"
            )
    if (largest := max(vocabulary.values())) >= vocab_size:
        raise CheckpointError(
            f"{where}: has token id {largest}, but vocab_size in {CONFIG} is {vocab_size}; "
            "this tokenizer does not belong to this checkpoint"
        )
