"""From a directory of PEFT to an adapter: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from phi3_serve.core.adapter import MAX_ADAPTER_STRENGTH
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.peft_config import FILE as CONFIG_FILE
from phi3_serve.engine.adapters.peft_config import PeftConfig, Rank
from phi3_serve.engine.adapters.places import modules, shapes
from phi3_serve.engine.kernels.contract import LowRank
from phi3_serve.engine.load_errors import in_one_line, resource_error
from phi3_serve.errors import CheckpointError, CheckpointIncomplete

FILE = "adapter_model.safetensors"
FILES = (CONFIG_FILE, FILE)
PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_DTYPES = {"F32", "F16", "BF16", "F64"}
# A layer sums thousands of products with such a number, and a norm squares the sum in float32, which ends at 3e38.
_MAX_CHANGE = 1e10
_ALIGNMENT = 64  # bytes: each matrix starts in a cache line of its own


def read_adapter(
    name: str, directory: Path, config: Any, dtype: torch.dtype, *, computed_in: torch.dtype | None = None
) -> LoadedAdapter:
    """The adapter in ``directory`` for a model with the Phi3Config ``config``, in ``dtype``, in the main memory.

    ``computed_in`` is the dtype of the model, if it is not ``dtype``.

    Raises:
        CheckpointError: it cannot be read, is damaged, or is not one that the engine computes exactly. The message is
            one line that names the file, and the field or tensor.
    """
    ranks = PeftConfig(directory).ranks(modules(config))
    file = directory / FILE
    if not file.exists():
        pickled = f"; {PICKLED} is a pickle, which may run any code" if (directory / PICKLED).exists() else ""
        raise CheckpointIncomplete(f"{file}: there is no such file{pickled}; allowed is safetensors")
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = _Tensors(file, stored, ranks, config)
            return LoadedAdapter(name, _changes(tensors, dtype, _max_change(computed_in or dtype)))
    except (OSError, SafetensorError, MemoryError, RuntimeError) as error:
        unreadable = CheckpointError(f"{file}: cannot be read: {in_one_line(error)}")
        raise (resource_error(str(file), error) or unreadable) from error


class _Tensors:
    """The tensors of a file, which are those that the config calls for."""

    def __init__(self, file: Path, stored: Any, ranks: Mapping[str, Rank], config: Any) -> None:
        self._file = file
        self._stored = stored
        self.sizes = {
            module: (ranks[module], outputs, inputs)
            for module, (outputs, inputs) in zip(modules(config), shapes(config), strict=True)
            if module in ranks
        }
        self.modules = modules(config)
        self._check()

    def _check(self) -> None:
        wanted: dict[str, list[int]] = {}
        for module, (of, outputs, inputs) in self.sizes.items():
            wanted |= {f"{_PREFIX}{module}{_A}": [of.rank, inputs], f"{_PREFIX}{module}{_B}": [outputs, of.rank]}
        names = set(self._stored.keys())
        if unknown := sorted(names - wanted.keys()):
            is_copy = unknown[0].endswith(("base_layer.weight", "embed_tokens.weight"))
            saved = "; save the adapter with save_embedding_layers=False" if is_copy else ""
            raise CheckpointError(
                f"{self._file}: tensor {unknown[0]} is not one that adapter_config.json calls for; allowed are "
                f"lora_A and lora_B of its target_modules{saved}"
            )
        if missing := sorted(wanted.keys() - names):
            raise CheckpointError(
                f"{self._file}: tensor {missing[0]} is missing, and {len(missing) - 1} more; adapter_config.json "
                f"calls for {len(wanted)} tensors"
            )
        for tensor, shape in wanted.items():
            of_file = self._stored.get_slice(tensor)
            if of_file.get_shape() != shape:
                raise CheckpointError(
                    f"{self._file}: tensor {tensor} has the shape {of_file.get_shape()}; the model and "
                    f"adapter_config.json call for {shape}"
                )
            if of_file.get_dtype() not in _DTYPES:
                raise CheckpointError(
                    f"{self._file}: tensor {tensor} has the type {of_file.get_dtype()}; allowed: {sorted(_DTYPES)}"
                )

    def read(self, module: str, part: str, into: Tensor) -> float:
        """Copy a matrix to ``into``, which has its shape or the transposed one. Returns its largest absolute value."""
        name = f"{_PREFIX}{module}{part}"
        into.copy_(self._stored.get_tensor(name))
        largest = max(abs(float(extreme)) for extreme in torch.aminmax(into))
        if not math.isfinite(largest):
            raise CheckpointError(f"{self._file}: tensor {name} has nan or inf; the adapter is damaged")
        return largest

    def check_change(self, module: str, largest: float, allowed: float) -> None:
        """Refuse a change of a weight by up to ``largest`` if that is more than ``allowed``."""
        if largest > allowed:
            raise CheckpointError(
                f"{self._file}: tensors {_PREFIX}{module}{_A} and {_B[1:]} may change a weight by {largest:.3g}, "
                f"as their largest numbers * rank * scaling (of lora_alpha) * strength {MAX_ADAPTER_STRENGTH:g}; "
                f"allowed: at most {allowed:.3g}"
            )


def _max_change(dtype: torch.dtype) -> float:
    """Of a weight of a model that computes in ``dtype``."""
    return min(_MAX_CHANGE, torch.finfo(dtype).max)


def _changes(tensors: _Tensors, dtype: torch.dtype, allowed: float) -> list[LowRank | None]:
    """All matrices in one piece of memory, which is given back as a whole. ``allowed``: the change of a weight."""
    aligned = _ALIGNMENT // dtype.itemsize
    starts, total = [], 0
    for of, outputs, inputs in tensors.sizes.values():
        for size in (of.rank * inputs, of.rank * outputs):
            starts.append(total)
            total += -(-size // aligned) * aligned
    memory = torch.empty(total, dtype=dtype)
    places = iter(starts)
    changes: dict[str, LowRank] = {}
    for module, (of, outputs, inputs) in tensors.sizes.items():
        a = memory[(start := next(places)) : start + of.rank * inputs].view(of.rank, inputs)
        b = memory[(start := next(places)) : start + of.rank * outputs].view(of.rank, outputs)
        largest = tensors.read(module, _A, a) * tensors.read(module, _B, b.T)
        tensors.check_change(module, largest * of.rank * abs(of.scaling) * MAX_ADAPTER_STRENGTH, allowed)
        changes[module] = LowRank(a, b, of.scaling)
    return [changes.get(module) for module in tensors.modules]
