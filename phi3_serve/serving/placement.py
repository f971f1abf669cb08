"""Where a model runs: its device, and what its replicas reserve of a node."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from phi3_serve.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Placement:
    """What one replica reserves."""

    device: Literal["cpu", "cuda"]
    num_cpus: float
    num_gpus: float
    accelerator_type: str | None

    @property
    def resources(self) -> dict[str, float]:
        """The reservation as Ray resources of one node."""
        needed = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        if self.accelerator_type is not None:
            needed[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: amount for name, amount in needed.items() if amount}

    @property
    def ray_actor_options(self) -> dict[str, object]:
        """The reservation as Ray Serve takes it."""
        options: dict[str, object] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.accelerator_type is not None:
            options["accelerator_type"] = self.accelerator_type
        return options

    def missing_from(self, nodes: Iterable[Mapping[str, float]]) -> str | None:
        """Which resource keeps every one of ``nodes`` (total resources each) from ever holding a replica, in words."""
        totals = list(nodes)
        if any(all(total.get(name, 0) >= amount for name, amount in self.resources.items()) for total in totals):
            return None
        lacking = [n for n, amount in self.resources.items() if all(t.get(n, 0) < amount for t in totals)]
        words = " and ".join(self._in_words(name) for name in lacking or self.resources)
        if lacking:
            return f"{words} on one node, and no node of the cluster has that"
        return f"{words} together on one node, and no node of the cluster has them together"

    def _in_words(self, resource: str) -> str:
        kind, _, accelerator_type = resource.partition(":")
        return f"an accelerator of type {accelerator_type}" if accelerator_type else f"{self.resources[kind]:g} {kind}"


def place(model: ModelConfig, *, cluster_has_gpu: bool) -> Placement:
    """Resolve what the config leaves to us.

    ``device: auto`` is the catalogue's device for a catalogue name: phi-3-tiny on the CPU, the real variants on a
    GPU even where there is none yet, so that one config fits a laptop and a GPU node. For any other name it is a
    GPU where the cluster has one.
    """
    needs_gpu = model.variant.needs_gpu if model.variant is not None else cluster_has_gpu
    device: Literal["cpu", "cuda"] = ("cuda" if needs_gpu else "cpu") if model.device == "auto" else model.device
    on_gpu = device == "cuda"
    return Placement(
        device=device,
        num_cpus=model.num_cpus if model.num_cpus is not None else (2.0 if on_gpu else 1.0),
        num_gpus=model.num_gpus if model.num_gpus is not None else (1.0 if on_gpu else 0.0),
        accelerator_type=model.accelerator_type,
    )
