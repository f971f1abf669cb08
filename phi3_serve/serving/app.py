"""The Serve application: ``import_path: phi3_serve.serving.app:build_app``.

This module has no ``from __future__ import annotations``: Serve reads the annotation of ``args`` as a class, to
validate the config.
"""

import uuid
from typing import Any, TypeVar

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from phi3_serve.config.app import AppConfig
from phi3_serve.config.defaults import problem_of_defaults
from phi3_serve.config.model import ModelConfig
from phi3_serve.config.model_name import INGRESS_NAME, deployment_name
from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.errors import Phi3ServeError
from phi3_serve.parameters import NONE_GIVEN
from phi3_serve.serving.deployed_defaults import deployed_defaults
from phi3_serve.serving.ingress import Ingress
from phi3_serve.serving.placement import Placement, place
from phi3_serve.serving.replica import ServedReplica
from phi3_serve.serving.replica_options import ReplicaOptions
from phi3_serve.serving.scaling import default_target_load
from phi3_serve.serving.versions import versioned

Number = TypeVar("Number", int, float)

# Serve accepts every request; the ingress itself refuses requests beyond its capacity, with a JSON body.
UNLIMITED_REQUESTS = 1_000_000
_SCALING_POLICY = "phi3_serve.serving.scaling:busy_replicas"
_PREFIX_ROUTER = "phi3_serve.serving.routing.PrefixRouter"
_ADAPTER_ROUTER = "phi3_serve.serving.routing.AdapterRouter"


def build_app(args: AppConfig) -> Application:
    """The ingress and one deployment per model.

    Raises:
        Phi3ServeError: the defaults of a model contradict each other.
    """
    return build_application(args)


def build_application(config: AppConfig, replica_class: type[ServedReplica] = ServedReplica) -> Application:
    """The application with replicas of ``replica_class``."""
    _require_consistent_defaults(config)
    cluster_has_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    elastic = config.cluster.elastic
    placements = {m.served_name: place(m, cluster_has_gpu=cluster_has_gpu, elastic=elastic) for m in config.models}
    models = {m.served_name: _bind_replica(m, placements[m.served_name], config, replica_class) for m in config.models}
    ingress: Deployment = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=config.http.replicas,
        ray_actor_options={"num_cpus": config.http.num_cpus, **_labels(config.http.label_selector)},
        max_ongoing_requests=UNLIMITED_REQUESTS,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s,
        user_config={},
    )(serve.ingress()(Ingress))
    return versioned(ingress, config, placements).bind(config, placements, models)


def _require_consistent_defaults(config: AppConfig) -> None:
    """Raise Phi3ServeError if a request that sets nothing would be refused. ``user_config`` may mend the ``args``."""
    if not any(problem_of_defaults(model.defaults) for model in config.models):
        return
    live = deployed_defaults(config)
    for number, model in enumerate(config.models):
        together = live.get(deployment_name(model.served_name), NONE_GIVEN).over(model.defaults)
        if problem := problem_of_defaults(together):
            raise Phi3ServeError(f"args.models[{number}].defaults: {problem}")


def _bind_replica(
    model: ModelConfig, placement: Placement, config: AppConfig, replica_class: type[ServedReplica]
) -> Application:
    limits, rollout = config.limits, model.rollout
    default_surge_percent = 100 if placement.device == "cpu" else 0
    deployment: Deployment = serve.deployment(
        name=deployment_name(model.served_name),
        ray_actor_options=placement.ray_actor_options,
        # more than the engine accepts, so that the engine refuses and gives the reason
        max_ongoing_requests=MAX_ROWS[placement.device] + 2 * limits.max_waiting_requests + 16,
        max_constructor_retry_count=3,  # a replica that ends while it loads, and one that refuses to take over
        health_check_period_s=model.health.check_period_s,
        health_check_timeout_s=model.health.check_timeout_s,
        max_surge_percent=_or_default(rollout.max_surge_percent, default_surge_percent),
        graceful_shutdown_timeout_s=_or_default(rollout.drain_timeout_s, limits.request_timeout_s),
        user_config=_user_config(model),
        **_scaling_options(model, placement),
        **_router_options(model),
    )(replica_class)
    options = ReplicaOptions.from_config(model, placement, limits)
    return versioned(deployment, options).bind(options)


def _scaling_options(model: ModelConfig, placement: Placement) -> dict[str, Any]:
    if model.max_replicas == model.min_replicas:
        return {"num_replicas": model.min_replicas}
    scaling = model.scaling
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=model.min_replicas,
            max_replicas=model.max_replicas,
            target_ongoing_requests=_or_default(scaling.target_load, default_target_load(placement.device)),
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            downscale_to_zero_delay_s=scaling.sleep_after_s,
            look_back_period_s=scaling.look_back_s,
            policy=AutoscalingPolicy(policy_function=_SCALING_POLICY, policy_kwargs=_of_this_build()),
        )
    }


def _of_this_build() -> dict[str, str]:
    """What no other build of the application has. The policy, a function, does not get it.

    After each build, Ray 2.60 forgets how to scale the deployments of the application (``deregister_application`` in
    ``ray.serve._private.application_state``), and learns it again from those alone whose options have changed. The
    version, which Ray itself changes at each build, is our own and stays. So without this a model that sleeps would
    not wake up any more after a change of another model.
    """
    return {"build": uuid.uuid4().hex}


def _labels(selector: dict[str, str]) -> dict[str, Any]:
    return {"label_selector": selector} if selector else {}


def _router_options(model: ModelConfig) -> dict[str, Any]:
    if model.routing == "load" and not model.offered_adapters:
        return {}
    router = _PREFIX_ROUTER if model.routing == "prefix" else _ADAPTER_ROUTER
    return {"request_router_config": {"request_router_class": router}}


def _user_config(model: ModelConfig) -> dict[str, Any]:
    """The adapters that requests may name. They are no part of the version, so a change of them restarts nothing."""
    if not model.offered_adapters:
        return {}
    return {"adapters": [adapter.model_dump(exclude_defaults=True) for adapter in model.offered_adapters]}


def _or_default(value: Number | None, default: Number) -> Number:
    return default if value is None else value


app = build_app(AppConfig())
"""The default application, bound, for ``serve build phi3_serve.serving.app:app``."""
