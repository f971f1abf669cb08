"""What replicas tell while they start: a replica in its constructor answers no call, so it leaves a note.

The notes lie in the key-value store of Ray's head, where Serve keeps its own state (``ray.experimental.internal_kv``).
They are a few words that replace one another, and nothing depends on them.
"""

import logging

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve"


class Note:
    """The note of one model's starting replica; outside Ray there is no board, and writing does nothing."""

    def __init__(self, model: str) -> None:
        self._model = model

    def write(self, words: str) -> None:
        """Replace what the note says."""
        self._put(words)

    def take_down(self) -> None:
        """Leave no note."""
        self._put(None)

    def _put(self, words: str | None) -> None:
        if not ray.is_initialized():
            return
        try:
            if words is None:
                _internal_kv_del(self._model, namespace=_NAMESPACE)
            else:
                _internal_kv_put(self._model, words, namespace=_NAMESPACE)
        except Exception:  # a head that is away is no reason not to load
            logger.warning("the progress of %s could not be told", self._model, exc_info=True)


def told(model: str) -> str | None:
    """What the starting replica of ``model`` last said."""
    words = _internal_kv_get(model, namespace=_NAMESPACE)
    return words.decode() if words else None
