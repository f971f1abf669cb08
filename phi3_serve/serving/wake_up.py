"""The start of variants that are scaled to zero."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle

from phi3_serve.core.variant_state import VariantState
from phi3_serve.serving.ray_errors import RAY_ERRORS


class WakeUpCalls:
    """At most one waiting call for each sleeping model: Serve starts a replica when a call waits in its router."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._calls: dict[str, asyncio.Task[None]] = {}

    def start(self, model: str) -> None:
        """Leave a call waiting for ``model``, if none waits already."""
        if model not in self._calls or self._calls[model].done():
            self._calls[model] = asyncio.create_task(self._ping(model))

    def cancel_answered(self, states: Mapping[str, VariantState]) -> None:
        """Cancel the calls of models that neither sleep nor load."""
        for model in list(self._calls):
            if states[model].state not in ("scaled_to_zero", "loading"):
                self._calls.pop(model).cancel()

    async def _ping(self, model: str) -> None:
        with contextlib.suppress(*RAY_ERRORS):
            await self._handles[model].ping.remote()
