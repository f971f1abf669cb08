"""Where a model runs: its device, and the resources of a node that a replica reserves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from phi3_serve.config.model import ModelConfig


@dataclass(frozen=True, slots=True)
class NodeResources:
    """The resources of one node, by Ray's names. A resource that is used up may be missing in ``free``.

    Its labels are among ``total``, by the name that ``label_as_resource`` gives them.
    """

    total: Mapping[str, float]
    free: Mapping[str, float]


def label_as_resource(key: str, value: str) -> str:
    """The name under which a label of a node is compared as a resource is. Ray has no such resource."""
    return f"label:{key}={value}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The device of one replica and its reservation."""

    device: Literal["cpu", "cuda"]
    num_cpus: float
    num_gpus: float
    accelerator_type: str | None
    label_selector: Mapping[str, str] = field(default_factory=dict)
    lacks_gpu: bool = False  # `device: auto` would be a GPU, and the cluster had none when the application was built

    @property
    def resources(self) -> dict[str, float]:
        """The reservation by the names of Ray's resources, and the labels."""
        needed = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        if self.accelerator_type is not None:
            needed[f"accelerator_type:{self.accelerator_type}"] = 0.001
        needed |= {label_as_resource(key, value): 1.0 for key, value in self.label_selector.items()}
        return {name: amount for name, amount in needed.items() if amount}

    @property
    def ray_actor_options(self) -> dict[str, object]:
        """The reservation as options of a Ray actor."""
        options: dict[str, object] = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}
        if self.accelerator_type is not None:
            options["accelerator_type"] = self.accelerator_type
        if self.label_selector:
            options["label_selector"] = dict(self.label_selector)
        return options

    def missing_resource(self, nodes: Iterable[Mapping[str, float]]) -> str | None:
        """The resources that no node has enough of, in words; None if some node can hold a replica.

        ``nodes`` are the total resources of each node.
        """
        totals = list(nodes)
        if any(all(total.get(name, 0) >= amount for name, amount in self.resources.items()) for total in totals):
            return None
        missing = [n for n, amount in self.resources.items() if all(t.get(n, 0) < amount for t in totals)]
        words = " and ".join(self._describe(name) for name in missing or self.resources)
        if missing:
            return f"{words} on one node, and no node of the cluster has that"
        return f"{words} together on one node, and no node of the cluster has them together"

    def shortage(self, nodes: Iterable[NodeResources]) -> str | None:
        """The resources that no node has enough free of, and how much is free, in words.

        None if some node has enough free, or if no node has enough at all.
        """
        able = [node for node in nodes if self.missing_resource([node.total]) is None]
        needed = {name: amount for name, amount in self.resources.items() if ":" not in name}
        if not able or any(all(node.free.get(n, 0) >= amount for n, amount in needed.items()) for node in able):
            return None
        missing = [n for n, amount in needed.items() if all(node.free.get(n, 0) < amount for node in able)]
        if not missing:
            return " and ".join(map(self._describe, needed)) + ", free on the same node"
        return " and ".join(f"{self._describe(name)} ({_free(name, able)})" for name in missing)

    def device_note(self, nodes: Iterable[Mapping[str, float]]) -> str:
        """Why the replica has no GPU although nobody has chosen the CPU; empty if that is not so."""
        if not self.lacks_gpu:
            return ""
        note = "It runs on the CPU, because `device` is auto and the cluster had no GPU when the application was built."
        has_gpu = any(total.get("GPU", 0) for total in nodes)
        return f"{note} The cluster has a GPU now; `device: cuda` uses it." if has_gpu else note

    def _describe(self, resource: str) -> str:
        kind, _, detail = resource.partition(":")
        if kind == "label":
            return f"the label {detail}"
        return f"an accelerator of type {detail}" if detail else f"{self.resources[kind]:g} {kind}"


def _free(name: str, nodes: Sequence[NodeResources]) -> str:
    """How much of a resource is free on the node with the most of it."""
    most = max(nodes, key=lambda node: node.free.get(name, 0))
    free = f"{most.free.get(name, 0):g} of {most.total[name]:g} are free"
    return free if len(nodes) == 1 else f"at most {free} on one node"


def place(model: ModelConfig, *, cluster_has_gpu: bool, elastic: bool = False) -> Placement:
    """The placement of ``model``, with defaults for what the config leaves open.

    ``device: auto`` of a catalogue name is the catalogue's device: the CPU for phi-3-tiny, a GPU for the real
    variants. They get a GPU even if the cluster has none yet, so that one config fits a laptop and a GPU node. For any
    other name ``auto`` is a GPU if the cluster has one, or if it is ``elastic`` and can get one. Otherwise it is the
    CPU, and the placement says so.
    """
    can_have_gpu = cluster_has_gpu or elastic
    needs_gpu = model.variant.needs_gpu if model.variant is not None else can_have_gpu
    device: Literal["cpu", "cuda"] = ("cuda" if needs_gpu else "cpu") if model.device == "auto" else model.device
    on_gpu = device == "cuda"
    return Placement(
        device=device,
        num_cpus=model.num_cpus if model.num_cpus is not None else (2.0 if on_gpu else 1.0),
        num_gpus=model.num_gpus if model.num_gpus is not None else (1.0 if on_gpu else 0.0),
        accelerator_type=model.accelerator_type,
        label_selector=model.label_selector,
        lacks_gpu=model.device == "auto" and model.variant is None and not can_have_gpu,
    )
