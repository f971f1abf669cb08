"""The response that sends a stream, in any form: its headers early, something in each silence, errors as events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass

from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from phi3_serve.errors import Phi3ServeError

# An error within this time has its own HTTP status. A longer silence begins the response.
STATUS_DEADLINE_S = 1.0
# Proxies such as nginx and load balancers close a connection that is silent for 60 seconds.
KEEP_ALIVE_INTERVAL_S = 15.0
# Without these, a proxy may hold events back; nginx reads X-Accel-Buffering.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How a protocol writes a stream."""

    media_type: str
    keep_alive: bytes  # stands between two events and means nothing to clients


class EventStream(StreamingResponse):
    """The response that sends events, and something to keep the connection alive while there are none."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        error_event: Callable[[Phi3ServeError], bytes],
        form: StreamForm,
    ) -> None:
        """``error_event`` makes the event that ends the stream when ``events`` fail."""
        self._form = form
        self._events = events
        self._error_event = error_event
        self._first = asyncio.ensure_future(anext(events, None))
        self._sent_at = 0.0
        super().__init__(self._content(), media_type=form.media_type, headers=HEADERS)

    async def wait_for_status(self) -> None:
        """Wait for the first event, at most ``STATUS_DEADLINE_S``.

        Raises:
            Phi3ServeError: the events fail within this time.
        """
        await asyncio.wait({self._first}, timeout=STATUS_DEADLINE_S)
        if self._first.done():
            self._first.result()

    async def close(self) -> None:
        """End the work for the events that are not sent yet."""
        self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._events.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, until the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.close()

    async def stream_response(self, send: Send) -> None:
        """Send all events. Another task keeps the connection alive, so that an event costs no timer."""

        async def send_and_note(message: Message) -> None:
            self._sent_at = time.monotonic()
            await send(message)

        await send_and_note({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        keeping_alive = asyncio.create_task(self._keep_alive(send_and_note))
        try:
            async for event in self.body_iterator:
                await send_and_note(_body(event))
            await send_and_note(_body(b"", more=False))
        finally:
            keeping_alive.cancel()

    async def _keep_alive(self, send: Send) -> None:
        """Send something at once if the first event is not there yet, and in each silence."""
        with suppress(OSError):  # the client is gone; the other task learns it, too
            if not self._first.done():
                await send(_body(self._form.keep_alive))
            while True:
                silence_s = time.monotonic() - self._sent_at
                if silence_s < KEEP_ALIVE_INTERVAL_S:
                    await asyncio.sleep(KEEP_ALIVE_INTERVAL_S - silence_s)
                else:
                    await send(_body(self._form.keep_alive))

    async def _content(self) -> AsyncGenerator[bytes, None]:
        try:
            if (event := await self._first) is None:
                return
            yield event
            async for event in self._events:
                yield event
        except Phi3ServeError as error:
            yield self._error_event(error)


def _body(content: str | bytes | memoryview, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def respond(
    events: AsyncGenerator[bytes, None], error_event: Callable[[Phi3ServeError], bytes], form: StreamForm
) -> StreamingResponse:
    """The response that streams ``events``.

    Raises:
        Phi3ServeError: the events fail within ``STATUS_DEADLINE_S``, before the first one. A later error is sent as
            ``error_event`` of it and ends the stream.
    """
    stream = EventStream(events, error_event, form)
    try:
        await stream.wait_for_status()
    except BaseException:
        await stream.close()
        raise
    return stream
