"""Events between two threads: none is lost, none is late, and the consumer is not woken without need."""

import asyncio
import threading
import time

from phi3_serve.core.engine_event import EngineEvent, Finished, NewTokens
from phi3_serve.serving.event_queue import EventQueue


def test_every_event_arrives_in_its_order() -> None:
    async def story() -> list[EngineEvent]:
        queue = EventQueue()

        def fill() -> None:
            for number in range(5000):
                queue.put(NewTokens((number,)))
                if number % 100 == 0:
                    time.sleep(0.001)
            queue.put(Finished(()))

        threading.Thread(target=fill).start()
        found: list[EngineEvent] = []
        while not found or isinstance(found[-1], NewTokens):
            async with asyncio.timeout(20):
                found += await queue.get_all()
            await queue.wait_for_last(0.002)
        return found

    found = asyncio.run(story())
    assert found == [*(NewTokens((number,)) for number in range(5000)), Finished(())]


def test_a_wait_for_any_event_has_an_end() -> None:
    async def story() -> tuple[bool, float, bool, bool]:
        queue = EventQueue()
        began = time.monotonic()
        is_empty = not await queue.has_any_within(0.2)
        waited = time.monotonic() - began
        threading.Timer(0.1, queue.put, [NewTokens((1,))]).start()
        found = await queue.has_any_within(20)
        again = await queue.has_any_within(0)
        assert await queue.get_all() == [NewTokens((1,))]
        return is_empty, waited, found, again

    is_empty, waited, found, again = asyncio.run(story())
    assert is_empty
    assert 0.2 <= waited < 10
    assert found
    assert again


def test_a_wait_ends_with_the_last_event_and_not_before() -> None:
    async def story() -> tuple[float, float, float]:
        queue = EventQueue()
        began = time.monotonic()
        queue.put(NewTokens((1,)))
        await queue.wait_for_last(0.2)
        whole = time.monotonic() - began
        threading.Timer(0.1, queue.put, [Finished(())]).start()
        await queue.wait_for_last(20)
        cut_short = time.monotonic() - began - whole
        await queue.wait_for_last(20)  # it is there already
        return whole, cut_short, time.monotonic() - began - whole - cut_short

    whole, cut_short, at_once = asyncio.run(story())
    assert whole >= 0.2
    assert 0.1 <= cut_short < 10
    assert at_once < 5
