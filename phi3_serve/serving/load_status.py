"""How far the replicas are that have no model yet.

Serve only knows whether a replica runs. So each replica without a model has an entry in the key-value store of Ray's
head, where Serve keeps its own state (``ray.experimental.internal_kv``). The entry goes when the model is loaded. An
entry of a replica that has died does not count. Reading costs one call as long as every replica has its model.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put
from ray.util import list_named_actors

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve-loading"
# Seconds, for clients who ask while a try runs: nobody knows how long it takes.
RETRY_DURING_TRY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadStatus:
    """One replica that has no model."""

    model: str
    text: str  # the progress of the try that runs, or the cause of the last failure
    num_tries: int = 0  # that have failed
    next_try_at: float | None = None  # seconds since 1970; None as soon as a try reports progress
    heals: bool = True  # whether the cause may end without a change of the configuration
    is_running: bool = False  # whether Serve counts the replica as running, and may send it requests

    def wait_s(self, now: float) -> float:
        """Seconds from ``now`` to the next try, at least one; while it runs, when to ask again."""
        if self.next_try_at is None or now >= self.next_try_at:
            return RETRY_DURING_TRY_S
        return max(1.0, self.next_try_at - now)

    def in_words(self, now: float) -> str:
        """The cause, the number of tries and the time of the next one."""
        if self.next_try_at is None:
            return self.text
        lasts = "" if self.heals else " This does not pass by itself."
        times = "once" if self.num_tries == 1 else f"{self.num_tries} times"
        when = "runs now" if now >= self.next_try_at else f"is in {math.ceil(self.wait_s(now))} s"
        return f"{self.text.rstrip('.')}.{lasts} Tried {times}; the next try {when}."


class LoadStatusEntry:
    """The entry of one replica. ``replica`` is the name of its actor; without one nothing is published."""

    def __init__(self, replica: str | None) -> None:
        self._replica = replica
        self.status: LoadStatus | None = None

    def publish(self, status: LoadStatus) -> bool:
        """Replace the entry. False if it could not be stored."""
        self.status = status
        return self._store(json.dumps(asdict(status)))

    def clear(self) -> None:
        """Remove the entry."""
        self.status = None
        self._store(None)

    def _store(self, text: str | None) -> bool:
        if self._replica is None:
            return True
        try:
            if text is None:
                _internal_kv_del(self._replica, namespace=_NAMESPACE)
            else:
                _internal_kv_put(self._replica, text, namespace=_NAMESPACE)
        except Exception:  # loading goes on without the head
            logger.warning("the load status of %s could not be published", self._replica, exc_info=True)
            return False
        return True


def read_load_statuses(app_name: str) -> Mapping[str, tuple[LoadStatus, ...]]:
    """The statuses of all living replicas of an application that have no model, by model."""
    keys = _internal_kv_list("", namespace=_NAMESPACE)
    if not keys:
        return {}
    alive = {actor["name"] for actor in list_named_actors(all_namespaces=True)}
    found: dict[str, tuple[LoadStatus, ...]] = {}
    for key in keys:
        if key.decode() not in alive:
            _internal_kv_del(key, namespace=_NAMESPACE)
        elif key.decode().startswith(f"SERVE_REPLICA::{app_name}#") and (status := _read(key)):
            found[status.model] = (*found.get(status.model, ()), status)
    return found


def _read(key: bytes) -> LoadStatus | None:
    """The status of one replica; None if it has gone, or if another version of phi3-serve has published it."""
    text = _internal_kv_get(key, namespace=_NAMESPACE)
    try:
        return LoadStatus(**json.loads(text)) if text else None
    except (TypeError, ValueError):
        return None
