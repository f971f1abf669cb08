"""The Serve application: ``import_path: phi3_serve.serving.app:build_app``.

Without ``from __future__ import annotations``: Serve reads the annotation object of ``args`` to validate it.
"""

from typing import Any

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from phi3_serve.config import INGRESS_NAME, AppConfig, ModelConfig
from phi3_serve.core import MAX_ROWS
from phi3_serve.serving.cluster import deployment_name
from phi3_serve.serving.ingress import Ingress
from phi3_serve.serving.placement import Placement, place
from phi3_serve.serving.replica import Replica

_ALL = 1_000_000  # Serve lets every request in; the ingress itself refuses what is too much, in our JSON
_ROUTERS = {"prefix": "phi3_serve.serving.routing.PrefixRouter"}


def build_app(args: AppConfig) -> Application:
    """The ingress and one deployment per model."""
    return application(args)


def application(config: AppConfig, replica: type[Replica] = Replica) -> Application:
    """As ``build_app``, over another class of replicas."""
    cluster_has_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    placements = {m.served_name: place(m, cluster_has_gpu=cluster_has_gpu) for m in config.models}
    models = {m.served_name: _replica(m, placements[m.served_name], config, replica) for m in config.models}
    ingress: Deployment = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=config.http.replicas,
        ray_actor_options={"num_cpus": config.http.num_cpus},
        max_ongoing_requests=_ALL,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s,
        user_config={},
    )(serve.ingress()(Ingress))
    return ingress.bind(config, placements, models)


def _replica(model: ModelConfig, placement: Placement, config: AppConfig, replica: type[Replica]) -> Application:
    limits, rollout = config.limits, model.rollout
    surge = 100 if placement.device == "cpu" else 0
    deployment: Deployment = serve.deployment(
        name=deployment_name(model.served_name),
        ray_actor_options=placement.ray_actor_options,
        # above what the engine takes, so that the engine refuses and says why
        max_ongoing_requests=MAX_ROWS[placement.device] + 2 * limits.max_waiting_requests + 16,
        max_constructor_retry_count=1,
        health_check_period_s=model.health.check_period_s,
        health_check_timeout_s=model.health.check_timeout_s,
        max_surge_percent=surge if rollout.max_surge_percent is None else rollout.max_surge_percent,
        graceful_shutdown_timeout_s=_given(rollout.drain_timeout_s, limits.request_timeout_s),
        user_config={},
        **_number_of_replicas(model, limits.max_waiting_requests),
        **_router(model),
    )(replica)
    return deployment.bind(
        name=model.served_name,
        source=model.checkpoint,
        revision=model.checkpoint_revision,
        device=placement.device,
        dtype=model.dtype,
        num_threads=max(1, int(placement.num_cpus)),
        stuck_after_s=model.health.stuck_after_s,
        limits=limits,
        defaults=model.defaults,
    )


def _number_of_replicas(model: ModelConfig, max_waiting: int) -> dict[str, Any]:
    if model.max_replicas == model.min_replicas:
        return {"num_replicas": model.min_replicas}
    scaling = model.scaling
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=model.min_replicas,
            max_replicas=model.max_replicas,
            target_ongoing_requests=_given(scaling.target_load, 1 + max_waiting / 2),
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            downscale_to_zero_delay_s=scaling.sleep_after_s,
            look_back_period_s=scaling.look_back_s,
        )
    }


def _router(model: ModelConfig) -> dict[str, Any]:
    if model.routing == "load":
        return {}
    return {"request_router_config": {"request_router_class": _ROUTERS[model.routing]}}


def _given(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


app = build_app(AppConfig())
"""The default application, bound: ``serve build phi3_serve.serving.app:app`` needs it."""
