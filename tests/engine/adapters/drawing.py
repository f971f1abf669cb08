"""Random adapters in the main memory, without a file."""

from collections.abc import Collection
from typing import Any

import torch

from phi3_serve.core.adapter import Adapter, AppliedAdapter
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.places import shapes
from phi3_serve.engine.kernels.contract import LowRank


def drawn(config: Any, rank: int, seed: int, *, without: Collection[int] = (), size: float = 0.1) -> LoadedAdapter:
    """An adapter in float32 for a model with ``config`` that changes all places but those of ``without``.

    Every third place has a smaller rank. What it adds is about ``size`` times as large as its inputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    changes: list[LowRank | None] = []
    for place, (outputs, inputs) in enumerate(shapes(config)):
        of_place = max(1, rank // 2) if place % 3 == 1 else rank
        a, b = normal(of_place, inputs, scale=inputs**-0.5), normal(of_place, outputs, scale=size * of_place**-0.5)
        changes.append(None if place in without else LowRank(a, b, scaling=1.0 + place / 7))
    return LoadedAdapter(f"drawn{seed}", changes)


def applied(*adapters: Adapter, strength: float = 1.0) -> tuple[AppliedAdapter, ...]:
    """``adapters``, each stronger than the one before it."""
    return tuple(AppliedAdapter(adapter, strength + number / 3) for number, adapter in enumerate(adapters))
