"""The defaults in ``user_config`` of the deployments of an application that is being built.

Serve gives the builder the ``args`` of the application alone. Its controller has all of the config.
"""

import logging
from collections.abc import Iterable, Mapping

import ray
from pydantic import ValidationError
from ray.serve.context import _get_global_client
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema

from phi3_serve.config.app import AppConfig
from phi3_serve.config.user_config import LiveModelConfig
from phi3_serve.parameters import GenerationParameters

logger = logging.getLogger("phi3_serve")


def deployed_defaults(config: AppConfig) -> Mapping[str, GenerationParameters]:
    """The defaults by deployment, in the applications whose ``args`` are ``config``; empty if they are not known."""
    if not ray.is_initialized():
        return {}
    try:
        if (client := _get_global_client(raise_if_no_controller_running=False)) is None:
            return {}
        # Ray 2.60 has no public way to a config that is being deployed
        applications: Mapping[str, ServeApplicationSchema] = ray.get(client._controller.get_app_configs.remote())
    except Exception:  # Ray raises many kinds while its controller or head is away
        logger.warning("the user_config of the deployments cannot be read", exc_info=True)
        return {}
    return {
        name: defaults
        for application in applications.values()
        if _args_of(application) == config
        for name, defaults in _defaults_in(application.deployments)
    }


def _args_of(application: ServeApplicationSchema) -> AppConfig | None:
    try:
        return AppConfig.model_validate(application.args)
    except ValidationError:
        return None


def _defaults_in(deployments: Iterable[DeploymentSchema]) -> Iterable[tuple[str, GenerationParameters]]:
    for deployment in deployments:
        try:
            yield deployment.name, LiveModelConfig.model_validate(deployment.user_config).defaults
        except ValidationError:  # none is given, or a replica fails with it
            continue
