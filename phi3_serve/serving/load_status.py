"""How far a starting replica is, and what its engine runs on when it has started.

A replica in its constructor answers no call. It publishes its status in the key-value store of Ray's head, where Serve
keeps its own state (``ray.experimental.internal_kv``). The status is one line of text; a new line replaces it. Nothing
depends on what is published.
"""

import json
import logging
from dataclasses import asdict

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from phi3_serve.core import EngineInfo

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve"
_ENGINES_NAMESPACE = "phi3-serve-engines"


class LoadStatus:
    """What one model's starting replica publishes. Outside Ray there is no store, and publishing does nothing."""

    def __init__(self, model: str) -> None:
        self._model = model

    def publish_engine(self, info: EngineInfo) -> None:
        """Replace what the engine of the model runs on. It stays when the replica has ended."""
        self._store(json.dumps(asdict(info)), _ENGINES_NAMESPACE)

    def publish(self, text: str) -> None:
        """Replace the status."""
        self._store(text)

    def clear(self) -> None:
        """Remove the status."""
        self._store(None)

    def _store(self, text: str | None, namespace: str = _NAMESPACE) -> None:
        if not ray.is_initialized():
            return
        try:
            if text is None:
                _internal_kv_del(self._model, namespace=namespace)
            else:
                _internal_kv_put(self._model, text, namespace=namespace)
        except Exception:  # loading goes on without the head
            logger.warning("the load status of %s could not be published", self._model, exc_info=True)


def read_load_status(model: str) -> str | None:
    """The last status of the starting replica of ``model``, or None."""
    text = _internal_kv_get(model, namespace=_NAMESPACE)
    return text.decode() if text else None


def read_engine_info(model: str) -> EngineInfo | None:
    """What the engine of the replica of ``model`` that started last runs on; None if another version wrote it."""
    text = _internal_kv_get(model, namespace=_ENGINES_NAMESPACE)
    try:
        return EngineInfo(**json.loads(text)) if text else None
    except TypeError:
        return None
