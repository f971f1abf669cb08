"""What replicas tell while they start: a replica in its constructor answers no call, so it leaves a note.

The notes lie in the key-value store of Ray's head, where Serve keeps its own state (``ray.experimental.internal_kv``).
They are a few words that replace one another, and nothing depends on them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from phi3_serve.observability import progress

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve"


@contextmanager
def telling(model: str) -> Iterator[None]:
    """While the context lasts, the progress of loading ``model`` is on the board."""
    if not ray.is_initialized():
        yield
        return
    try:
        with progress.told_to(lambda words: _put(model, words)):
            yield
    finally:
        _put(model, None)


def told(model: str) -> str | None:
    """What the starting replica of ``model`` last said."""
    words = _internal_kv_get(model, namespace=_NAMESPACE)
    return words.decode() if words else None


def _put(model: str, words: str | None) -> None:
    try:
        if words is None:
            _internal_kv_del(model, namespace=_NAMESPACE)
        else:
            _internal_kv_put(model, words, namespace=_NAMESPACE)
    except Exception:  # a head that is away is no reason not to load
        logger.warning("the progress of %s could not be told", model, exc_info=True)
