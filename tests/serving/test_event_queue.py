"""Events between two threads: none is lost, none is late, and nobody is woken for nothing."""

import asyncio
import threading
import time

from phi3_serve.core import EngineEvent, Finished, NewTokens
from phi3_serve.serving.event_queue import EventQueue


def test_every_event_arrives_in_its_order() -> None:
    async def story() -> list[EngineEvent]:
        box = EventQueue()

        def fill() -> None:
            for number in range(5000):
                box.put(NewTokens((number,)))
                if number % 100 == 0:
                    time.sleep(0.001)
            box.put(Finished(()))

        threading.Thread(target=fill).start()
        found: list[EngineEvent] = []
        while not found or isinstance(found[-1], NewTokens):
            async with asyncio.timeout(20):
                found += await box.take()
            await box.rest(0.002)
        return found

    found = asyncio.run(story())
    assert found == [*(NewTokens((number,)) for number in range(5000)), Finished(())]


def test_a_rest_ends_with_the_last_event_and_not_before() -> None:
    async def story() -> tuple[float, float, float]:
        box = EventQueue()
        began = time.monotonic()
        box.put(NewTokens((1,)))
        await box.rest(0.2)
        whole = time.monotonic() - began
        threading.Timer(0.1, box.put, [Finished(())]).start()
        await box.rest(20)
        cut_short = time.monotonic() - began - whole
        await box.rest(20)  # it is there already
        return whole, cut_short, time.monotonic() - began - whole - cut_short

    whole, cut_short, at_once = asyncio.run(story())
    assert whole >= 0.2
    assert 0.1 <= cut_short < 10
    assert at_once < 5
