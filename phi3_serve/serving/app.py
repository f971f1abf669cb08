"""The Serve application: ``import_path: phi3_serve.serving.app:build_app``.

Without ``from __future__ import annotations``: Serve reads the annotation object of ``args`` to validate it.
"""

import ray
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig

from phi3_serve.config import INGRESS_NAME, AppConfig, ModelConfig
from phi3_serve.core import MOST_ROWS
from phi3_serve.serving.cluster import deployment_name
from phi3_serve.serving.ingress import Ingress
from phi3_serve.serving.placement import Placement, place
from phi3_serve.serving.replica import Replica


def build_app(args: AppConfig) -> Application:
    """The ingress and one deployment per model."""
    cluster_has_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    placements = {m.served_name: place(m, cluster_has_gpu=cluster_has_gpu) for m in args.models}
    models = {m.served_name: _replica(m, placements[m.served_name], args) for m in args.models}
    ingress: Deployment = serve.deployment(
        name=INGRESS_NAME,
        num_replicas=args.http.replicas,
        ray_actor_options={"num_cpus": args.http.num_cpus},
        max_ongoing_requests=1000,  # it only waits; the replicas' queues are the limit
        graceful_shutdown_timeout_s=args.limits.request_timeout_s,
    )(serve.ingress()(Ingress))
    return ingress.bind(args, placements, models)


def _replica(model: ModelConfig, placement: Placement, config: AppConfig) -> Application:
    deployment: Deployment = serve.deployment(
        name=deployment_name(model.served_name),
        ray_actor_options=placement.ray_actor_options,
        # above what the engine takes, so that the engine refuses and says why
        max_ongoing_requests=MOST_ROWS + 2 * config.limits.max_waiting_requests + 16,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=config.limits.request_timeout_s,
    )(Replica)
    if model.max_replicas > model.min_replicas:
        scaling = AutoscalingConfig(
            min_replicas=model.min_replicas,
            max_replicas=model.max_replicas,
            target_ongoing_requests=1 + config.limits.max_waiting_requests / 2,
        )
        deployment = deployment.options(autoscaling_config=scaling)
    else:
        deployment = deployment.options(num_replicas=model.min_replicas)
    return deployment.bind(
        name=model.served_name,
        source=model.checkpoint,
        revision=model.checkpoint_revision,
        device=placement.device,
        dtype=model.dtype,
        num_threads=max(1, int(placement.num_cpus)),
        max_waiting=config.limits.max_waiting_requests,
    )


app = build_app(AppConfig())
"""The default application, bound: ``serve build phi3_serve.serving.app:app`` needs it."""
