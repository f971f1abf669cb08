"""What every wire format does with a request: find its model, run it, count it, take its last event."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response

from phi3_serve import catalogue
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.config import AppConfig
from phi3_serve.core import Backend, Delta, Done, GenerationRequest, RequestOptions
from phi3_serve.errors import EngineFailure, UnknownModel, did_you_mean
from phi3_serve.observability.metrics import RequestMetrics

CLIENT_CLOSED_REQUEST = 499  # nginx's word for it; nobody reads it
NO_END = "The answer broke off before its end."
SESSION = "x-session-id"  # Ray Serve's own name for it
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")
Events = AsyncGenerator[Delta | Done, None]
T = TypeVar("T")


class Service:
    """The backend, as the routes use it."""

    def __init__(self, backend: Backend, config: AppConfig, limits: CurrentLimits) -> None:
        self.backend = backend
        self.config = config
        self.limits = limits
        self.measurements = RequestMetrics()
        self._served = [model.served_name for model in config.models]

    def model_named(self, name: str | None) -> str:
        """The served model that ``name`` spells; the default one for None.

        Raises:
            UnknownModel: no served model has this name.
        """
        found = self.config.default_model_name if name is None else catalogue.find(name, self._served)
        if found is None:
            hint = did_you_mean(str(name), self._served, f"; served are {', '.join(self._served)}.", quote="")
            raise UnknownModel(f"Model {str(name)[:128]} is not served here{hint}", "model")
        return found

    def options(self, http: Request, session: str | None = None) -> RequestOptions:
        """What the headers and the limits in force say; ``Prefer: wait=SECONDS`` is that of RFC 7240."""
        limits, wait = self.limits.current, _WAIT.search(http.headers.get("prefer", ""))
        return RequestOptions(
            session=http.headers.get(SESSION) or session,
            wait_s=min(float(wait[1]), limits.request_timeout_s) if wait else 0.0,
            queue_timeout_s=limits.queue_timeout_s,
            timeout_s=limits.request_timeout_s,
        )

    def events(self, request: GenerationRequest) -> Events:
        """The events of ``request``, counted."""
        return self.measurements.measured(request.model, self.backend.generate(request))


async def last(events: AsyncIterator[Delta | Done]) -> Done:
    """The whole answer, once it is there."""
    async for event in events:
        if isinstance(event, Done):
            return event
    raise EngineFailure(NO_END)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What ``work`` answers; it is cancelled once the client has gone.

    Starlette watches the connection of a stream only. Serve's Python proxy watches that of a plain request too, and
    its HAProxy does not.
    """
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        for task in (answer, gone):
            task.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
