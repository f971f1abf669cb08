"""Sends the requests of a batch: many at once, and again where the server says so."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator

from phi3_serve.batch.lines import Reply, RequestLine
from phi3_serve.batch.window import Place, Window

Send = Callable[[RequestLine], Awaitable[Reply]]
Take = Callable[[RequestLine, Reply], None]

MOST_SET_ASIDE = 1024
"""Requests of a run that wait for adapters beside those in flight. They are in memory."""
_LONGEST_PAUSE_S = 30.0


async def run(lines: Iterator[RequestLine], send: Send, take: Take, *, most_at_once: int) -> None:
    """Give each of ``lines`` and its reply to ``take``, in the order in which the replies come.

    A request that the server wants later (429 or 503 with Retry-After) is sent again until it has another reply. If it
    waits for an adapter, it is set aside, and others are sent meanwhile.

    Args:
        lines: the requests; read as they are sent, so there may be more than fit into memory.
        send: sends one request.
        take: keeps one reply.
        most_at_once: requests in flight at most.

    Raises:
        Exception: whatever ``send`` raises; the requests in flight are given up.
    """
    async with asyncio.TaskGroup() as senders:
        sending = _Sending(lines, send, take, Window(most_at_once), senders)
        for _ in range(most_at_once):
            senders.create_task(sending.send_some())


class _Sending:
    """The requests of one run."""

    def __init__(
        self, lines: Iterator[RequestLine], send: Send, take: Take, window: Window, tasks: asyncio.TaskGroup
    ) -> None:
        self._lines = lines
        self._send = send
        self._take = take
        self._window = window
        self._tasks = tasks
        self._num_set_aside = 0

    async def send_some(self) -> None:
        """Send one request after another, until there are no more."""
        while True:
            async with self._window.place() as place:  # before a line is read: only lines in flight are in memory
                if (line := next(self._lines, None)) is None:
                    return
                reply = await self._send_once(line, place)
            if reply.may_be_sent_again and reply.is_of_adapter and self._num_set_aside < MOST_SET_ASIDE:
                self._num_set_aside += 1
                self._tasks.create_task(self._send_aside(line, reply))
            else:
                await self._send_again(line, reply)

    async def _send_aside(self, line: RequestLine, reply: Reply) -> None:
        try:
            await self._send_again(line, reply)
        finally:
            self._num_set_aside -= 1

    async def _send_again(self, line: RequestLine, reply: Reply) -> None:
        """Keep ``reply``, or the one to the last of several tries."""
        while reply.may_be_sent_again:
            # Not all at the same moment.
            await asyncio.sleep(min(reply.retry_after_s or 0, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))  # noqa: S311
            async with self._window.place() as place:
                reply = await self._send_once(line, place)
        self._take(line, reply)

    async def _send_once(self, line: RequestLine, place: Place) -> Reply:
        reply = await self._send(line)
        if not reply.may_be_sent_again:
            place.answered()
        elif not reply.is_of_adapter:  # which says nothing of the capacity
            place.refused()
        return reply
