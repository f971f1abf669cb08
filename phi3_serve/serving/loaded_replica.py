"""The replica of each model that has loaded it last, in the key-value store of Ray's head.

Serve reports neither the versions of replicas nor what their engines run on.
"""

import json
import logging
from dataclasses import asdict, dataclass

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from phi3_serve.core.engine_info import EngineInfo

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve-loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedReplica:
    """A replica that has its model."""

    name: str  # of its actor
    version: str  # ``ReplicaOptions.version``
    engine: EngineInfo


def deployment_of(replica: str) -> str:
    """``application#deployment`` of the replica whose actor has this name."""
    return replica.removeprefix("SERVE_REPLICA::").rpartition("#")[0]


def announce(loaded: LoadedReplica) -> None:
    """Say that a replica has loaded its model. It stays announced when it has ended."""
    try:
        _internal_kv_put(deployment_of(loaded.name), json.dumps(asdict(loaded)), namespace=_NAMESPACE)
    except Exception:  # the model answers all the same
        logger.warning("%s has its model, but this could not be announced", loaded.name, exc_info=True)


def last_loaded(deployment: str) -> LoadedReplica | None:
    """The replica that has loaded its model last, of ``deployment``, which has the form ``application#deployment``.

    None if another version of phi3-serve has announced it.
    """
    text = _internal_kv_get(deployment, namespace=_NAMESPACE)
    if not text:
        return None
    try:
        fields = json.loads(text)
        return LoadedReplica(**{**fields, "engine": EngineInfo(**fields["engine"])})
    except (KeyError, TypeError, ValueError):
        return None
