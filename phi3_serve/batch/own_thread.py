"""An event loop in a thread of its own, for work that waits for files.

A directory on a network may hang. Then this thread waits, and the loop that answers requests goes on.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import ParamSpec, TypeVar

logger = logging.getLogger("ray.serve")

STOP_TIMEOUT_S = 10.0

P = ParamSpec("P")
T = TypeVar("T")


@asynccontextmanager
async def in_own_thread(work: Coroutine[object, object, None]) -> AsyncGenerator[None, None]:
    """Run ``work`` on the loop of a new thread while the context lasts. At the end it is cancelled and waited for."""
    here, has_ended = asyncio.get_running_loop(), asyncio.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)

    def run() -> None:
        _run(loop, task)
        with suppress(RuntimeError):  # the loop that waited has ended
            here.call_soon_threadsafe(has_ended.set)

    threading.Thread(target=run, name="phi3-batches", daemon=True).start()
    try:
        yield
    finally:
        with suppress(RuntimeError):  # the work has ended, and its loop with it
            loop.call_soon_threadsafe(task.cancel)
        try:
            await asyncio.wait_for(has_ended.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            logger.error("batches still wait for their directory after %g s", STOP_TIMEOUT_S)


def on_this_loop(function: Callable[P, Coroutine[object, object, T]]) -> Callable[P, Awaitable[T]]:
    """``function`` for other loops. It runs on the loop that runs now. A caller that is cancelled ends it."""
    loop = asyncio.get_running_loop()

    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop))

    return call


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    asyncio.set_event_loop(loop)
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())  # what threads still write is written
    except Exception:
        logger.exception("batches have ended")
    finally:
        loop.close()
