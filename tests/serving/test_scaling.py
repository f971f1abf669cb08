"""The number of replicas that the controller of Ray Serve is told, from its own context."""

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from phi3_serve.config import AppConfig
from phi3_serve.core import Load
from phi3_serve.serving.app import build_application
from phi3_serve.serving.scaling import CACHE_USAGE, busy_replicas, default_target_load, scaling_statistics

DEPLOYMENT = DeploymentID("m", "phi3")


def wanted(num_requests: float, *usage: float, num_replicas: int = 1) -> float:
    """Replicas that a model needs whose replicas report ``usage`` of their caches."""
    reported = {ReplicaID(f"r{number}", DEPLOYMENT): value for number, value in enumerate(usage)}
    context = AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name="m",
        app_name="phi3",
        current_num_replicas=num_replicas,
        target_num_replicas=num_replicas,
        running_replicas=list(reported),
        total_num_requests=num_requests,
        total_queued_requests=0.0,
        aggregated_metrics={CACHE_USAGE: reported} if reported else None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(max_replicas=8, target_ongoing_requests=192),
    )
    return busy_replicas(context)[0]


def test_a_batch_that_is_not_full_needs_one_replica() -> None:
    """A GPU has 256 rows; the second replica used to be asked for at 33 requests."""
    assert default_target_load("cuda") == 192
    assert wanted(150, 0.3) < 1
    assert wanted(200, 0.3) > 1


def test_long_requests_fill_the_cache_before_the_rows() -> None:
    assert wanted(40, 1.0) == pytest.approx(1 / 0.85)
    assert wanted(80, 1.0, 1.0, num_replicas=2) == pytest.approx(2 / 0.85)
    assert wanted(40, 0.5, 0.3, num_replicas=2) < 1


def test_without_reports_the_requests_count() -> None:
    assert wanted(384) == 2


def test_a_sleeping_model_stays_as_it_is() -> None:
    assert wanted(0, num_replicas=0) == 0


def test_a_replica_reports_the_use_of_its_cache() -> None:
    assert scaling_statistics(Load(1, 0, 200, 50)) == {CACHE_USAGE: 0.25}
    assert scaling_statistics(Load(0, 0, 0, 0)) == {CACHE_USAGE: 0.0}


def scaling_of(model: dict[str, Any]) -> AutoscalingConfig:
    config = AppConfig.model_validate({"models": [{"name": "phi-3-tiny", "max_replicas": 3, **model}]})
    ingress: Any = build_application(config)
    found = ingress._bound_deployment.init_args[2]["phi-3-tiny"]
    scaling = found._bound_deployment._deployment_config.autoscaling_config
    assert isinstance(scaling, AutoscalingConfig)
    return scaling


def test_the_deployment_has_the_policy_and_the_target() -> None:
    scaling = scaling_of({})
    assert scaling.policy.policy_function == "phi3_serve.serving.scaling:busy_replicas"
    assert scaling.target_ongoing_requests == 96  # three quarters of the rows on a CPU
    assert scaling_of({"scaling": {"target_load": 7}}).target_ongoing_requests == 7
