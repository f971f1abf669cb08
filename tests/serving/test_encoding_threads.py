"""The threads in which texts become token ids."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt, TokenPrompt
from phi3_serve.serving.encoding_threads import LONG_AT_ONCE, LONG_CHARACTERS, EncodingThreads

HALF = "a" * (LONG_CHARACTERS // 2 + 1)
LONG: list[Prompt] = [
    RawPrompt(HALF + HALF),
    RawPrompt(HALF, prefix=HALF),
    Conversation((Message("system", HALF), Message("user", HALF))),
]
SHORT: list[Prompt] = [RawPrompt(HALF), Conversation((Message("user", HALF),)), TokenPrompt((5,) * LONG_CHARACTERS * 2)]


@pytest.mark.parametrize("long", LONG)
def test_long_texts_wait_for_each_other_and_hold_up_no_short_one(long: Prompt) -> None:
    may_end, running = threading.Event(), threading.Semaphore(0)
    num_running = 0

    def wait() -> int:
        nonlocal num_running
        num_running += 1
        running.release()
        may_end.wait(20)
        return 1

    async def run() -> list[int]:
        threads = EncodingThreads()
        waiting = [asyncio.create_task(threads.run(long, wait)) for _ in range(100)]
        for _ in range(LONG_AT_ONCE):
            assert await asyncio.to_thread(running.acquire, timeout=20)
        for short in SHORT:
            assert await asyncio.wait_for(threads.run(short, lambda: "short"), 20) == "short"
        assert num_running == LONG_AT_ONCE
        may_end.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [1] * 100


def test_an_error_and_the_context_pass() -> None:
    variable = ContextVar("variable", default="outside")

    def refuse() -> None:
        raise ValueError(variable.get())

    async def run() -> None:
        variable.set("inside")
        await EncodingThreads().run(RawPrompt("a"), refuse)

    with pytest.raises(ValueError, match="inside"):
        asyncio.run(run())
