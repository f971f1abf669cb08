"""Engine events between the engine's thread and the event loop."""

import asyncio
from collections import deque
from contextlib import suppress

from phi3_serve.core.engine_event import EngineEvent, Finished
from phi3_serve.core.event import Failed


class EventQueue:
    """A queue with one producer, a thread, and one consumer, a coroutine.

    Waking the event loop costs both threads a tenth of a millisecond, as much as one token of a small model. So
    ``put`` wakes the loop only if ``get_all`` waits, or for the last event.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[EngineEvent] = deque()
        self._wakeup = asyncio.Event()
        self._is_consumer_waiting = False

    def put(self, event: EngineEvent) -> None:
        """Add ``event``; the engine's thread calls this."""
        self._events.append(event)
        if self._is_consumer_waiting or _is_last(event):
            self._loop.call_soon_threadsafe(self._wakeup.set)

    async def get_all(self) -> list[EngineEvent]:
        """Wait until there is an event, then remove and return all events."""
        await self._wait_for_any()
        return [self._events.popleft() for _ in range(len(self._events))]

    async def has_any_within(self, timeout_s: float) -> bool:
        """Wait until there is an event, at most ``timeout_s``. Whether there is one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wait_for_any()
        return bool(self._events)

    async def _wait_for_any(self) -> None:
        self._is_consumer_waiting = True
        try:
            while not self._events:
                self._wakeup.clear()
                if not self._events:  # the thread may have added one before the flag was cleared
                    await self._wakeup.wait()
        finally:
            self._is_consumer_waiting = False

    async def wait_for_last(self, timeout_s: float) -> None:
        """Wait until the last event is in the queue, or until ``timeout_s`` has passed. Meanwhile events collect."""
        self._wakeup.clear()
        if timeout_s <= 0 or (self._events and _is_last(self._events[-1])):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wakeup.wait()


def _is_last(event: EngineEvent) -> bool:
    return isinstance(event, Finished | Failed)
