"""What the nodes of the Ray cluster have and have free, which replicas live, and which have no node yet."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray._private.state import state as ray_state
from ray.util import list_named_actors

from phi3_serve.serving.placement import NodeResources, label_as_resource


def node_resources() -> list[NodeResources]:
    """The nodes that are alive."""
    free = ray_state.available_resources_per_node()
    return [NodeResources(_total_of(n), free.get(n["NodeID"], {})) for n in ray.nodes() if n["Alive"]]


def _total_of(node: Mapping[str, Any]) -> dict[str, float]:
    labels: Mapping[str, str] = node.get("Labels") or {}
    return {**node["Resources"], **{label_as_resource(key, value): 1.0 for key, value in labels.items()}}


def num_replicas_without_node(app_name: str) -> Counter[str]:
    """The number of replicas that wait for a node, by deployment.

    Ray gives an actor its port when it has reserved the actor's resources and started its process. A process that fails
    to start is rare, so that a replica without a port waits for resources.
    """
    pending = ray_state.actor_table(None, actor_state_name="PENDING_CREATION").values()
    return _by_deployment(app_name, (actor["Name"] for actor in pending if not actor["Address"]["Port"]))


def num_living_replicas(app_name: str) -> Counter[str]:
    """The number of replicas whose actors live, also those that have no model yet, by deployment."""
    return _by_deployment(app_name, (actor["name"] for actor in list_named_actors(all_namespaces=True)))


def _by_deployment(app_name: str, actors: Iterable[str]) -> Counter[str]:
    prefix = f"SERVE_REPLICA::{app_name}#"
    return Counter(name.removeprefix(prefix).split("#")[0] for name in actors if name.startswith(prefix))
