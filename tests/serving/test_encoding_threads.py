"""The threads in which texts become token ids."""

import asyncio
import threading
from contextvars import ContextVar

import pytest

from phi3_serve.core.generation_request import RequestOptions
from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt, TokenPrompt
from phi3_serve.errors import Overloaded, RequestTimeout
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
        waiting = [threads.start(long, wait).result for _ in range(100)]
        for _ in range(LONG_AT_ONCE):
            assert await asyncio.to_thread(running.acquire, timeout=20)
        for short in SHORT:
            assert await asyncio.wait_for(threads.start(short, lambda: "short").result, 20) == "short"
        assert num_running == LONG_AT_ONCE
        may_end.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [1] * 100


def test_what_is_left_before_it_begins_is_never_done() -> None:
    may_end, done = threading.Event(), threading.Semaphore(0)
    num_done = num_after = 0

    def wait() -> None:
        nonlocal num_done
        num_done += 1
        may_end.wait(20)

    def note_the_end() -> None:
        nonlocal num_after
        num_after += 1
        done.release()

    async def run() -> None:
        threads = EncodingThreads()
        started = [threads.start(LONG[0], wait) for _ in range(LONG_AT_ONCE)]
        await asyncio.gather(*(each.begun(RequestOptions(timeout_s=20)) for each in started))
        left = threads.start(LONG[0], wait)
        for each in (left, started[0]):
            each.leave(note_the_end)
        assert num_after == 1
        may_end.set()
        assert await asyncio.to_thread(done.acquire, timeout=20)
        assert await asyncio.to_thread(done.acquire, timeout=20)
        await threads.start(LONG[0], lambda: None).result

    asyncio.run(run())
    assert (num_done, num_after) == (LONG_AT_ONCE, 2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (RequestOptions(timeout_s=0.05), RequestTimeout),
        (RequestOptions(timeout_s=20, queue_timeout_s=0.05), Overloaded),
    ],
)
def test_a_text_waits_no_longer_than_its_request_may(options: RequestOptions, error: type[Exception]) -> None:
    may_end = threading.Event()

    async def run() -> None:
        threads = EncodingThreads()
        running = [threads.start(LONG[0], lambda: may_end.wait(20)).result for _ in range(LONG_AT_ONCE)]
        with pytest.raises(error):
            await threads.start(LONG[0], lambda: None).begun(options)
        may_end.set()
        await asyncio.gather(*running)

    asyncio.run(run())


def test_an_error_and_the_context_pass() -> None:
    variable = ContextVar("variable", default="outside")

    def refuse() -> None:
        raise ValueError(variable.get())

    async def run() -> None:
        variable.set("inside")
        await EncodingThreads().start(RawPrompt("a"), refuse).result

    with pytest.raises(ValueError, match="inside"):
        asyncio.run(run())
