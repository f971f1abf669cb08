"""Engine events on their way from the engine's thread to the event loop."""

import asyncio
from collections import deque
from contextlib import suppress

from phi3_serve.core import EngineEvent, NewTokens


class EventQueue:
    """Filled by one thread, emptied by one coroutine.

    A wake-up costs both threads a tenth of a millisecond, as much as a small model's token, so the loop is woken only
    where somebody waits, and for the last event.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[EngineEvent] = deque()
        self._news = asyncio.Event()
        self._is_waited_for = False

    def put(self, event: EngineEvent) -> None:
        """Called on the engine's thread."""
        self._events.append(event)
        if self._is_waited_for or not isinstance(event, NewTokens):
            self._loop.call_soon_threadsafe(self._news.set)

    async def take(self) -> list[EngineEvent]:
        """Everything that has come, once there is something."""
        self._is_waited_for = True
        try:
            while not self._events:
                self._news.clear()
                if not self._events:  # it may have come before the flag was down
                    await self._news.wait()
        finally:
            self._is_waited_for = False
        return [self._events.popleft() for _ in range(len(self._events))]

    async def rest(self, seconds: float) -> None:
        """Let events gather for so long, or until the last one is there."""
        self._news.clear()
        if seconds <= 0 or (self._events and not isinstance(self._events[-1], NewTokens)):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
