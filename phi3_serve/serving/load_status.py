"""How far a starting replica is.

A replica in its constructor answers no call. It publishes its status in the key-value store of Ray's head, where Serve
keeps its own state (``ray.experimental.internal_kv``). The status is one line of text; a new line replaces it. Nothing
depends on the status.
"""

import logging

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve"


class LoadStatus:
    """The status of one model's starting replica. Outside Ray there is no store, and publishing does nothing."""

    def __init__(self, model: str) -> None:
        self._model = model

    def publish(self, text: str) -> None:
        """Replace the status."""
        self._store(text)

    def clear(self) -> None:
        """Remove the status."""
        self._store(None)

    def _store(self, text: str | None) -> None:
        if not ray.is_initialized():
            return
        try:
            if text is None:
                _internal_kv_del(self._model, namespace=_NAMESPACE)
            else:
                _internal_kv_put(self._model, text, namespace=_NAMESPACE)
        except Exception:  # loading goes on without the head
            logger.warning("the load status of %s could not be published", self._model, exc_info=True)


def read_load_status(model: str) -> str | None:
    """The last status of the starting replica of ``model``, or None."""
    text = _internal_kv_get(model, namespace=_NAMESPACE)
    return text.decode() if text else None
