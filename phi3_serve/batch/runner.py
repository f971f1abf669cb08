"""Sends the requests of a batch: many at once, and again where the server says so."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

from phi3_serve.batch.lines import Reply, RequestLine
from phi3_serve.batch.window import Place, Window

Send = Callable[[RequestLine], Awaitable[Reply]]
Take = Callable[[RequestLine, Reply], None]

_LONGEST_PAUSE_S = 30.0


async def run(lines: Iterator[RequestLine], send: Send, take: Take, *, most_at_once: int) -> None:
    """Give each of ``lines`` and its reply to ``take``, in the order in which the replies come.

    A request that the server wants later (429 or 503 with Retry-After) is sent again until it has another reply.

    Args:
        lines: the requests; read as they are sent, so there may be more than fit into memory.
        send: sends one request.
        take: keeps one reply.
        most_at_once: requests in flight at most.

    Raises:
        Exception: whatever ``send`` raises; the requests in flight are given up.
    """
    window = Window(most_at_once)
    async with asyncio.TaskGroup() as senders:
        for _ in range(most_at_once):
            senders.create_task(_send_some(lines, send, take, window))


async def _send_some(lines: Iterator[RequestLine], send: Send, take: Take, window: Window) -> None:
    while True:
        async with window.place() as place:  # before a line is read: only lines in flight are in memory
            if (line := next(lines, None)) is None:
                return
            reply = await _send_once(line, send, place)
        while reply.may_be_sent_again:
            # Not all at the same moment.
            await asyncio.sleep(min(reply.retry_after_s or 0, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))  # noqa: S311
            async with window.place() as place:
                reply = await _send_once(line, send, place)
        take(line, reply)


async def _send_once(line: RequestLine, send: Send, place: Place) -> Reply:
    reply = await send(line)
    if reply.may_be_sent_again:
        place.refused()
    else:
        place.answered()
    return reply
