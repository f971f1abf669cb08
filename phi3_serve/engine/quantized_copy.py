"""``phi3-serve quantize``: a copy of a checkpoint whose linear layers have fewer bits, so that a load need not round.

A model of the copy is equal, bit for bit, to one that is rounded at its load. The copy has the format of the library
compressed-tensors, which other servers read too. The embedding and the head stay as they are; a load rounds them.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from phi3_serve.catalogue import QUANTIZED_BYTES
from phi3_serve.engine.checked_weights import CheckedWeights, check_weights
from phi3_serve.engine.checkpoint import (
    CONFIG,
    GENERATION_CONFIG,
    OPTIONAL_FILES,
    SHARD_INDEX,
    TOKENIZER,
    Checkpoint,
    open_checkpoint,
)
from phi3_serve.engine.checkpoint_config import read_json
from phi3_serve.engine.compressed_tensors import pack
from phi3_serve.engine.freed_memory import return_freed_memory
from phi3_serve.engine.load_errors import in_one_line, resource_error
from phi3_serve.engine.loader import load_config
from phi3_serve.engine.quantization import CPU, HEAD, round_weight
from phi3_serve.engine.source import GGUF_SUFFIX
from phi3_serve.engine.stored_quantization import KEYS, config_of_copy
from phi3_serve.errors import CheckpointError, CheckpointIncomplete, StorageFull
from phi3_serve.observability.progress import Progress, human_bytes

UNFINISHED = ".unfinished"  # a directory in that of the copy, of the same file system
COPIED = (GENERATION_CONFIG, TOKENIZER, *OPTIONAL_FILES, "chat_template.jinja")  # as they are, if they are there
SHARD_BYTES = 10**9  # after which a file ends; while it is written, its tensors are held twice


@dataclass(frozen=True, slots=True)
class QuantizedCopy:
    """What was written."""

    directory: Path
    quantization: str
    source_bytes: int  # of all weights
    num_bytes: int  # of those that were written

    def as_json(self) -> dict[str, Any]:
        """The result for scripts."""
        return {
            "directory": str(self.directory),
            "quantization": self.quantization,
            "source_bytes": self.source_bytes,
            "bytes": self.num_bytes,
        }


NO_COPY_OF_GGUF = "GGUF files are served as they are; a copy is made of safetensors files"


def write_quantized_copy(name: str, source: Path, to: Path, quantization: str) -> QuantizedCopy:
    """Write the checkpoint at ``source`` to the directory ``to``, with linear layers in int8, int4 or fp8.

    One weight after another is read and rounded. An unfinished copy is no checkpoint, and the next one replaces it.

    Raises:
        CheckpointError: ``source`` cannot be read or is quantised already, ``to`` has other files, is too small or
            cannot be written. ``name`` is what the message calls the model.
    """
    if source.suffix == GGUF_SUFFIX or (not (source / CONFIG).exists() and any(source.glob(f"*{GGUF_SUFFIX}"))):
        raise CheckpointError(f"{name}: {NO_COPY_OF_GGUF}")
    checkpoint = open_checkpoint(source)
    if checkpoint.quantization is not None:
        raise CheckpointError(f"{name}: the weights are quantised already ({checkpoint.weight_format})")
    weights = check_weights(name, checkpoint, load_config(checkpoint), torch.bfloat16)
    directory = to.expanduser().absolute()
    try:
        unfinished = _new_directory(directory, int(checkpoint.num_parameters * QUANTIZED_BYTES[quantization]))
        num_bytes = _write_weights(name, checkpoint, weights, unfinished, quantization)
        for file in COPIED:
            if (checkpoint.path / file).exists():
                shutil.copyfile(checkpoint.path / file, unfinished / file)
        for path in [*unfinished.iterdir()]:
            path.rename(directory / path.name)
        unfinished.rmdir()
        _write_json(directory / CONFIG, _config(checkpoint, quantization))
    except CheckpointError:
        raise
    except Exception as error:  # of the file system, or of safetensors
        unwritable = CheckpointIncomplete(f"{directory}: cannot be written: {in_one_line(error)}")
        raise (resource_error(str(directory), error) or unwritable) from error
    return QuantizedCopy(directory, quantization, checkpoint.total_bytes, num_bytes)


def _new_directory(directory: Path, num_bytes: int) -> Path:
    """An empty directory in ``directory``, which must have nothing else, and room for ``num_bytes``."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(path.name != UNFINISHED for path in directory.iterdir()):
        raise CheckpointError(f"{directory}: is not empty; name a new directory, or remove what is in it")
    unfinished = directory / UNFINISHED
    if unfinished.exists():
        shutil.rmtree(unfinished)
    if (free := shutil.disk_usage(directory).free) < num_bytes:
        raise StorageFull(f"{directory}: {human_bytes(num_bytes)} are needed, and {human_bytes(free)} are free")
    unfinished.mkdir()
    return unfinished


def _write_weights(
    name: str, checkpoint: Checkpoint, weights: CheckedWeights, directory: Path, quantization: str
) -> int:
    """Write all shards and their index; the bytes of all tensors."""
    progress = Progress(f"{name}: rounding weights to {quantization}", checkpoint.total_bytes)
    shards = _Shards(directory)
    for parameter in weights.parameters:
        shards.add(_stored_parts(weights, parameter, quantization))
        return_freed_memory()
        progress.advance(weights.stored.num_bytes(parameter))
    shards.finish()
    progress.finish()
    return shards.total_bytes


def _stored_parts(weights: CheckedWeights, parameter: str, quantization: str) -> dict[str, Tensor]:
    """The tensors of the copy for ``parameter``."""
    weight = weights.stored.read(parameter)
    assert isinstance(weight, Tensor)  # noqa: S101 - write_quantized_copy has refused others
    path = parameter.removesuffix(".weight")
    if path == HEAD or not isinstance(weights.model.get_submodule(path), nn.Linear):
        return {parameter: weight}
    rounded = round_weight(weight, quantization, CPU)
    return {f"{path}.{part}": tensor for part, tensor in pack(rounded).items()}


class _Shards:
    """Safetensors files of about ``SHARD_BYTES`` each, and the index of their tensors."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._tensors: dict[str, Tensor] = {}  # of the next file
        self._files: dict[str, str] = {}  # by tensor
        self._num_files = 0
        self.total_bytes = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors |= tensors
        self.total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= SHARD_BYTES:
            self._write()

    def finish(self) -> None:
        if self._tensors:
            self._write()
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": self._files}
        _write_json(self._directory / SHARD_INDEX, index)

    def _write(self) -> None:
        self._num_files += 1
        file = f"model-{self._num_files:05}.safetensors"
        path = self._directory / file
        path.touch()
        mode = path.stat().st_mode
        save_file(self._tensors, path, metadata={"format": "pt"})
        path.chmod(mode)  # the library lets only the owner read it
        self._files |= dict.fromkeys(self._tensors, file)
        self._tensors = {}


def _config(checkpoint: Checkpoint, quantization: str) -> dict[str, Any]:
    """config.json of the copy: that of the source as it is there, and how the weights are stored."""
    dropped = (*KEYS, "auto_map")  # the latter names code that is not copied
    config = {key: value for key, value in read_json(checkpoint.path / CONFIG).items() if key not in dropped}
    return {**config, KEYS[0]: config_of_copy(quantization)}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(path)
