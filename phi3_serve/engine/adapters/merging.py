"""Adapters that are applied always: added to the weights while these are read."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phi3_serve.engine.adapters.places import HEAD, modules
from phi3_serve.engine.adapters.reader import read_adapter
from phi3_serve.engine.kernels.contract import Fp8Weight, LowRank, Weight
from phi3_serve.errors import CheckpointError


class MergedAdapter(NamedTuple):
    """An adapter that is applied always."""

    name: str
    directory: str
    strength: float


class Merging:
    """The sums of some adapters for each weight of a model."""

    def __init__(
        self, model: str, adapters: Sequence[MergedAdapter], config: Any, dtype: torch.dtype, *, is_quantized: bool
    ) -> None:
        """Read ``adapters`` for the model with the Phi3Config ``config``.

        Args:
            model: its name, for messages.
            adapters: may be none.
            config: of the model.
            dtype: that the model computes in.
            is_quantized: whether the checkpoint stores weights that are rounded already.

        Raises:
            CheckpointError: an adapter cannot be read, or cannot be applied always.
        """
        self._changes: dict[str, list[tuple[LowRank, float]]] = {}
        for name, directory, strength in adapters:
            where = f"{model}: adapter {name} cannot be applied always"
            if is_quantized:
                raise CheckpointError(f"{where}: the checkpoint stores rounded weights; offer the adapter by name")
            if not math.isfinite(strength):
                raise CheckpointError(f"{where}: its strength is {strength}; allowed are finite numbers")
            loaded = read_adapter(name, Path(directory), config, torch.float32, computed_in=dtype)
            for module, change in zip(modules(config), loaded.changes, strict=True):
                if module == HEAD and change is not None and config.tie_word_embeddings:
                    raise CheckpointError(
                        f"{where}: it changes {HEAD}, which is the embedding, too; offer the adapter by name"
                    )
                if change is not None:
                    self._changes.setdefault(f"{module}.weight", []).append((change, strength))

    def merged(self, parameter: str, weight: Tensor | Weight | Fp8Weight) -> Tensor | Weight | Fp8Weight:
        """``weight`` with all changes, in float32 if there are any."""
        if parameter not in self._changes:
            return weight
        assert isinstance(weight, Tensor)  # noqa: S101 - the checkpoint stores no rounded weights
        total = weight.to(torch.float32, copy=True)
        for change, strength in self._changes[parameter]:
            total.addmm_(change.b.T, change.a, alpha=change.scaling * strength)
        return total
