"""The number of replicas that the controller of Ray Serve is told, from its own context."""

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from phi3_serve.config.app import AppConfig
from phi3_serve.core.engine_info import Load
from phi3_serve.serving.app import build_application
from phi3_serve.serving.scaling import CACHE_NEED, CACHE_TARGET, busy_replicas, default_target_load, scaling_statistics

DEPLOYMENT = DeploymentID("m", "phi3")


def wanted(num_requests: float, *needs: float, num_replicas: int = 1) -> float:
    """Replicas that a model needs whose replicas report ``needs`` of their caches."""
    return decided(num_requests, *needs, num_replicas=num_replicas, state={})[0]


def decided(
    num_requests: float, *needs: float, num_replicas: int, state: dict[str, Any], target: int | None = None
) -> tuple[float, dict[str, Any]]:
    """The same with the state of the policy before and after."""
    reported = {ReplicaID(f"r{number}", DEPLOYMENT): value for number, value in enumerate(needs)}
    context = AutoscalingContext(
        deployment_id=DEPLOYMENT,
        deployment_name="m",
        app_name="phi3",
        current_num_replicas=num_replicas,
        target_num_replicas=num_replicas if target is None else target,
        running_replicas=list(reported),
        total_num_requests=num_requests,
        total_queued_requests=0.0,
        aggregated_metrics={CACHE_NEED: reported} if reported else None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state=state,
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=AutoscalingConfig(max_replicas=8, target_ongoing_requests=192),
    )
    return busy_replicas(context)


def test_a_batch_that_is_not_full_needs_one_replica() -> None:
    """A GPU has 256 rows; the second replica used to be asked for at 33 requests."""
    assert default_target_load("cuda") == 192
    assert wanted(150, 0.1) < 1
    assert wanted(200, 0.1) > 1


def test_long_requests_fill_the_cache_before_the_rows() -> None:
    assert wanted(40, 1.0) == pytest.approx(1 / CACHE_TARGET)
    assert wanted(80, 1.0, 1.0, num_replicas=2) == pytest.approx(2 / CACHE_TARGET)
    assert wanted(40, 0.2, 0.1, num_replicas=2) < 1


def test_without_reports_the_requests_count() -> None:
    assert wanted(384) == 2


def test_a_sleeping_model_stays_as_it_is() -> None:
    assert wanted(0, num_replicas=0) == 0


def test_a_replica_reports_what_its_requests_need_of_the_cache() -> None:
    assert scaling_statistics(Load(1, 0, 200, 50)) == {CACHE_NEED: 0.25}
    assert scaling_statistics(Load(10, 5, 200, 200)) == {CACHE_NEED: 1.5}  # a full cache cannot show it
    assert scaling_statistics(Load(0, 3, 200, 0)) == {CACHE_NEED: 0.0}
    assert scaling_statistics(Load(0, 0, 0, 0)) == {CACHE_NEED: 0.0}


def test_the_peak_since_the_need_fell_counts_when_replicas_stop() -> None:
    state: dict[str, Any] = {"of Ray": 1}
    found = []
    for requests in (1000, 400, 700, 200):  # 5.2, 2.1, 3.6 and 1.04 replicas
        need, state = decided(requests, num_replicas=5, state=state)
        found.append(round(need, 2))
    assert found == [5.21, 2.08, 3.65, 3.65]
    need, state = decided(200, num_replicas=4, state=state)  # Ray has stopped one: the peak begins anew
    assert need == pytest.approx(1.04, abs=0.01)
    need, state = decided(768, num_replicas=4, state=state)  # not below the target
    assert (need, state) == (4, {})


def test_the_peak_never_holds_replicas_that_ray_would_stop() -> None:
    """It is below the target, so Ray's delay passes as without it."""
    state: dict[str, Any] = {}
    for requests in (575, 10, 0):
        need, state = decided(requests, num_replicas=4, state=state)
        assert need <= 3
    assert decided(0, num_replicas=1, state={})[0] == 0  # the last one may sleep


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
    assert scaling.policy != scaling_of({}).policy  # so that Ray learns it anew from each build of the application
    assert scaling.target_ongoing_requests == 96  # three quarters of the rows on a CPU
    assert scaling_of({"scaling": {"target_load": 7}}).target_ongoing_requests == 7
