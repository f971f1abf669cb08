"""The adapters of the ``user_config`` with which the next replica of a model will start, as Serve's controller has it.

A model that sleeps has no replica that could announce them, and its ``user_config`` may have changed since.
"""

import logging
from collections.abc import Mapping, Sequence

import ray
from pydantic import ValidationError
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client

from phi3_serve.config.user_config import LiveModelConfig
from phi3_serve.core.adapter import OfferedAdapter

logger = logging.getLogger("phi3_serve")


def configured_adapters(app_name: str, deployments: Sequence[str]) -> Mapping[str, tuple[OfferedAdapter, ...]]:
    """What the next replica of each of ``deployments`` will offer. Those of which it is not known are left out."""
    try:
        if (client := _get_global_client(raise_if_no_controller_running=False)) is None:
            return {}
        read = client._controller.get_deployment_config  # Ray 2.60 has no public way to a user_config
        configs = ray.get([read.remote(DeploymentID(name, app_name)) for name in deployments])
    except Exception:  # Ray raises many kinds while its controller or head is away
        logger.warning("the adapters of models without a replica cannot be read", exc_info=True)
        return {}
    found = {
        name: _offered_in(config.user_config)
        for name, config in zip(deployments, configs, strict=True)
        if config is not None
    }
    return {name: offered for name, offered in found.items() if offered is not None}


def _offered_in(user_config: object) -> tuple[OfferedAdapter, ...] | None:
    """The adapters in ``user_config``; None if it is wrong, so that a replica fails with it."""
    try:
        live = LiveModelConfig.model_validate(user_config or {})
    except ValidationError:
        return None
    return tuple(adapter.offered for adapter in live.adapters)
