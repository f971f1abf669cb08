"""Whether the engine can compute the adapters of a request."""

import math
from collections.abc import Sequence

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.pages import PagedAdapter
from phi3_serve.engine.adapters.peft_config import MAX_RANK
from phi3_serve.errors import InvalidRequest


def check_adapters(adapters: Sequence[AppliedAdapter]) -> None:
    """Refuse adapters that are too large together, and strengths that are no numbers.

    Raises:
        InvalidRequest: of the field ``adapters``.
        TypeError: an adapter is of another engine than this one.
    """
    total = 0
    for applied in adapters:
        if not isinstance(applied.adapter, LoadedAdapter | PagedAdapter):
            raise TypeError(f"{applied.adapter.name} was not loaded by this engine")
        if not math.isfinite(applied.strength):
            raise InvalidRequest(
                f"`adapters`: the strength of {applied.adapter.name} is {applied.strength}; allowed: finite numbers.",
                "adapters",
            )
        total += applied.adapter.rank if applied.strength else 0
    if total > MAX_RANK:
        raise InvalidRequest(
            f"`adapters` have ranks of {total} together; at most {MAX_RANK} are allowed in one request.", "adapters"
        )
