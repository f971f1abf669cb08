"""The share of a server that batches may take: what the other requests leave, and never a place in a queue."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from phi3_serve.core.backend_protocol import Occupancy

POLL_INTERVAL_S = 0.02


class Share:
    """How many requests of batches are in flight for each model.

    A request is sent while the replicas of its model have room to run it at once. At most ``fraction`` of what they run
    at once are requests of batches. A model without a replica gets one request, which starts a replica.

    The count of a model's requests lacks those that are on their way to it, which takes milliseconds. So near the limit
    a few requests of batches may wait behind each other.
    """

    def __init__(self, fraction: float, occupancy: Callable[[str], Occupancy]) -> None:
        self._fraction = fraction
        self._occupancy = occupancy
        self._in_flight: defaultdict[str, int] = defaultdict(int)
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # first come, first served

    @asynccontextmanager
    async def place(self, model: str) -> AsyncGenerator[None, None]:
        """A place for one request to ``model``; waits until there is one."""
        async with self._turns[model]:
            while not self._has_room(model):  # noqa: ASYNC110 - other requests end without an event
                await asyncio.sleep(POLL_INTERVAL_S)
            self._in_flight[model] += 1
        try:
            yield
        finally:
            self._in_flight[model] -= 1

    def _has_room(self, model: str) -> bool:
        now = self._occupancy(model)
        if self._in_flight[model] >= max(1, int(self._fraction * now.num_places)):
            return False
        return not now.num_places or max(now.num_requests, self._in_flight[model]) < now.num_places
