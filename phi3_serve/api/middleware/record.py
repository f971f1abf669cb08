"""A record of each POST: status, times, and what its requests to models had."""

import logging
import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.keys import key_of
from phi3_serve.api.request_state import RECORD, request_id_of
from phi3_serve.observability.request_record import RequestRecord, Sink, Source

logger = logging.getLogger("ray.serve")

_OF_TRACE = ("traceparent", "tracestate")  # https://www.w3.org/TR/trace-context/


class RecordMiddleware:
    """Gives each sink the record of each POST when the request has ended. It comes after the request has its id."""

    def __init__(self, app: ASGIApp, *, sinks: Sequence[Sink], source: Source = "http") -> None:
        self._app = app
        self._sinks = sinks
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if not self._sinks or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord(
            request_id=request_id_of(scope),
            method=scope["method"],
            path=scope["path"][:256],
            source=self._source,
            headers={name: headers[name] for name in _OF_TRACE if name in headers},
        )
        scope["state"][RECORD] = record

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            record.ended_at = time.time_ns()
            if (key := key_of(scope)) is not None:
                record.api_key = key.name
            self._give(record)

    def _give(self, record: RequestRecord) -> None:
        for sink in self._sinks:
            try:
                sink(record)
            except Exception:  # a full disk, for example; the request is answered all the same
                logger.warning("the record of request %s is lost", record.request_id, exc_info=True)
