"""The adapters that each model offers, in the key-value store of Ray's head.

The replicas know them, because a change of ``user_config`` does not reach the ingress.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

from phi3_serve.core.adapter import OfferedAdapter

logger = logging.getLogger("phi3_serve")

_NAMESPACE = "phi3-serve-adapters"


def announce_adapters(deployment: str, adapters: Sequence[OfferedAdapter]) -> None:
    """Say what the replicas of ``deployment`` offer, which has the form ``application#deployment``."""
    try:
        text = json.dumps([asdict(adapter) for adapter in adapters])
        _internal_kv_put(deployment, text, namespace=_NAMESPACE)
    except Exception:  # requests can name the adapters all the same
        logger.warning("the adapters of %s could not be announced", deployment, exc_info=True)


def announced_adapters(deployment: str) -> tuple[OfferedAdapter, ...] | None:
    """What the replicas of ``deployment`` offer; None if nothing was announced, or by another version of phi3-serve."""
    text = _internal_kv_get(deployment, namespace=_NAMESPACE)
    if not text:
        return None
    try:
        return tuple(OfferedAdapter(**fields) for fields in json.loads(text))
    except (TypeError, ValueError):
        return None
