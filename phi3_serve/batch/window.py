"""How many requests of a batch are in flight: as many as the server takes, found as TCP finds its window."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

START = 8


class Window:
    """Additive increase, multiplicative decrease (Jacobson 1988, Congestion Avoidance and Control).

    Until the first refusal each answer raises the limit by one, later a whole window of answers does. A refusal halves
    the limit, once for all requests that were sent before.
    """

    def __init__(self, largest: int) -> None:
        self.limit: float = min(START, largest)
        self._largest = largest
        self._in_flight = 0
        self._has_been_refused = False
        self._num_decreases = 0
        self._has_room = asyncio.Condition()

    @asynccontextmanager
    async def place(self) -> AsyncGenerator["Place", None]:
        """A place among those in flight; waits until one is free."""
        async with self._has_room:
            await self._has_room.wait_for(lambda: self._in_flight < int(self.limit))
            self._in_flight += 1
        try:
            yield Place(self, self._num_decreases)
        finally:
            async with self._has_room:
                self._in_flight -= 1
                self._has_room.notify_all()

    def _answered(self) -> None:
        self.limit = min(self._largest, self.limit + (1 / self.limit if self._has_been_refused else 1))

    def _refused(self, num_decreases: int) -> None:
        if num_decreases == self._num_decreases:
            self.limit = max(1, self.limit / 2)
            self._num_decreases += 1
        self._has_been_refused = True


class Place:
    """What one request in flight says of the server."""

    def __init__(self, window: Window, num_decreases: int) -> None:
        self._window = window
        self._num_decreases = num_decreases

    def answered(self) -> None:
        """The server took the request."""
        self._window._answered()

    def refused(self) -> None:
        """The server has no capacity now."""
        self._window._refused(self._num_decreases)
