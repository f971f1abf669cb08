"""How many replicas a model needs: as many as keep the rows of a batch and the key-value cache below their targets.

Ray Serve calls ``busy_replicas`` in its controller, and applies the delays and the limits of the config to the result.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ray.serve.config import AutoscalingContext

from phi3_serve.core import MAX_ROWS, Load

# A new replica takes a minute or more. Until it runs, the rest of the rows and the queue take what comes.
ROWS_TARGET = 0.75
CACHE_TARGET = 0.85  # of the blocks. A full cache preempts requests, which costs more than it gives
CACHE_USAGE = "kv_cache_usage"


def default_target_load(device: Literal["cpu", "cuda"]) -> float:
    """Requests that a replica should have, running and waiting, if each takes one row of the batch."""
    return ROWS_TARGET * MAX_ROWS[device]


def scaling_statistics(load: Load) -> dict[str, float]:
    """What a replica reports to the controller, beside the number of its requests, which Ray knows."""
    return {CACHE_USAGE: load.num_blocks_used / load.num_blocks if load.num_blocks else 0.0}


def busy_replicas(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """The replicas that the load needs, a fraction, and no state for the next call.

    Requests with long prompts fill the cache before they fill the rows. So the larger need of both counts.
    """
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    config: Any = context.config
    by_requests = context.total_num_requests / config.get_target_ongoing_requests()
    usage: Mapping[Any, float] = (context.aggregated_metrics or {}).get(CACHE_USAGE, {})
    return max(by_requests, sum(usage.values()) / CACHE_TARGET), {}
