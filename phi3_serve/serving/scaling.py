"""How many replicas a model needs: as many as keep the rows of a batch and the key-value cache below their targets.

Ray Serve calls ``busy_replicas`` in its controller, and applies the delays and the limits of the config to the result.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from ray.serve.config import AutoscalingContext

from phi3_serve.core.engine_info import MAX_ROWS, Load

# A new replica takes a minute or more. Until it runs, the rest of the rows and the queue take what comes.
ROWS_TARGET = 0.75
# Of the blocks. Each step reads the cache, so the requests in flight grow much faster than the load: at a third of the
# cache a GPU already answers most of the requests that it can answer at all.
CACHE_TARGET = 0.35
CACHE_NEED = "kv_cache_need"
_TARGET, _PEAK = "below_target", "peak_need"  # in the state of the policy


def default_target_load(device: Literal["cpu", "cuda"]) -> float:
    """Requests that a replica should have, running and waiting, if each takes one row of the batch."""
    return ROWS_TARGET * MAX_ROWS[device]


def scaling_statistics(load: Load) -> dict[str, float]:
    """What a replica reports to the controller, beside the number of its requests, which Ray knows.

    A full cache cannot show how many requests it has no room for. So those that wait count as much as those that run,
    and the value may be above 1.
    """
    if not load.num_running or not load.num_blocks:
        return {CACHE_NEED: 0.0}
    used = load.num_blocks_used / load.num_blocks
    return {CACHE_NEED: used * (1 + load.num_waiting / load.num_running)}


def busy_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """The replicas that the load needs, a fraction, and the state for the next call.

    Requests with long prompts fill the cache before they fill the rows. So the larger need of both counts.
    """
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    config: Any = context.config
    by_requests = context.total_num_requests / config.get_target_ongoing_requests()
    cache: Mapping[Any, float] = (context.aggregated_metrics or {}).get(CACHE_NEED, {})
    return _peak(max(by_requests, sum(cache.values()) / CACHE_TARGET), context)


def _peak(need: float, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """The largest need since it fell below the target, and the state.

    After ``downscale_delay_s`` below the target, Ray takes the need of that moment. A minute later it may be twice as
    much, and a replica that stopped takes minutes to come back.
    """
    target = context.target_num_replicas
    if math.ceil(need) >= target:
        return need, {}
    state = context.policy_state or {}
    peak = max(need, state[_PEAK]) if state.get(_TARGET) == target else need
    return peak, {_TARGET: target, _PEAK: peak}
