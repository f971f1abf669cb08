"""What the controller of Ray Serve decides, in virtual time: Ray's own functions, called with that time.

Ray's loop calls the wall clock, so the order of the calls is repeated here; each step is Ray's.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve import autoscaling_policy as ray_policy
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from phi3_serve.core.engine_info import Load
from phi3_serve.serving.scaling import scaling_statistics

REPORTED_EVERY_S = 10.0  # RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S and its pair for handles
_DEPLOYMENT = DeploymentID("m", "phi3")


@dataclass(frozen=True, slots=True)
class Sample:
    """The running replicas at one time, by number."""

    seconds: float
    loads: Mapping[int, Load]


class SimulatedController:
    """The number of replicas that one model should have."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config
        self._policy = config.policy.get_policy()
        self._state: dict[str, Any] = {}
        self._samples: deque[Sample] = deque()
        self._reported_at = 0.0
        self._num_requests = 0.0
        self._metrics: dict[str, dict[ReplicaID, float]] = {}
        self.target = config.min_replicas

    def observe(self, now: float, loads: Mapping[int, Load]) -> None:
        """Note the loads of the running replicas. They reach the controller every ``REPORTED_EVERY_S``, as means."""
        self._samples.append(Sample(now, loads))
        while self._samples[0].seconds <= now - self._config.look_back_period_s:
            self._samples.popleft()
        if now - self._reported_at >= REPORTED_EVERY_S:
            self._reported_at = now
            totals = [sum(load.num_running + load.num_waiting for load in s.loads.values()) for s in self._samples]
            self._num_requests = sum(totals) / len(totals)
            self._metrics = self._means(loads)

    def _means(self, loads: Mapping[int, Load]) -> dict[str, dict[ReplicaID, float]]:
        """What each replica records about itself, averaged over the samples that have the replica."""
        means: dict[str, dict[ReplicaID, float]] = {}
        for number in loads:
            reported = [scaling_statistics(s.loads[number]) for s in self._samples if number in s.loads]
            for name in reported[0]:
                mean = sum(statistics[name] for statistics in reported) / len(reported)
                means.setdefault(name, {})[replica_id(number)] = mean
        return means

    def decide(self, now: float, running: Sequence[int], num_queued: int) -> int:
        """The target at ``now``. ``num_queued``: requests that no replica has, because the model sleeps."""
        ids = [replica_id(number) for number in running]
        context = AutoscalingContext(
            deployment_id=_DEPLOYMENT,
            deployment_name=_DEPLOYMENT.name,
            app_name=_DEPLOYMENT.app_name,
            current_num_replicas=len(ids),
            target_num_replicas=self.target,
            running_replicas=ids,
            total_num_requests=(self._num_requests if ids else 0.0) + num_queued,
            total_queued_requests=float(num_queued),
            # Of a replica that stopped since, Ray forgets the report.
            aggregated_metrics={
                name: {one: value for one, value in values.items() if one in ids}
                for name, values in self._metrics.items()
            },
            raw_metrics=None,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=now,
            config=self._config,
        )
        wanted = self._wanted(context, now)
        self.target = max(self._config.min_replicas, min(self._config.max_replicas, wanted))
        return self.target

    def _wanted(self, context: AutoscalingContext, now: float) -> int:
        """As ``ray.serve.autoscaling_policy._apply_autoscaling_config`` does, at ``now``."""
        cold_start = ray_policy._get_cold_start_scale_up_replicas(context)
        if cold_start is not None:
            return cold_start
        desired, state = self._policy(context)
        scaled = ray_policy._apply_scaling_factors(desired, context.current_num_replicas, self._config)
        if context.current_num_replicas == 0 and scaled > 0:
            return scaled
        decided, delays = ray_policy._apply_delay_logic(
            max(0, scaled),
            context.target_num_replicas,
            self._config,
            ray_policy._extract_internal_policy_state(self._state),
            now,
        )
        self._state = {**state, **delays}
        return decided


_IDS: dict[int, ReplicaID] = {}


def replica_id(number: int) -> ReplicaID:
    """The name of a replica in Ray."""
    if number not in _IDS:
        _IDS[number] = ReplicaID(f"r{number}", _DEPLOYMENT)
    return _IDS[number]
