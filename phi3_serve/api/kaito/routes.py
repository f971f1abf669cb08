"""KAITO's ``POST /chat``, plain and streamed."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from phi3_serve.api import sse
from phi3_serve.api.kaito import schema as kaito
from phi3_serve.api.kaito.schema import ChatRequest, ChatResponse
from phi3_serve.api.service import NO_END, Events, Service, cancel_on_disconnect, last
from phi3_serve.core import Delta, Done, GenerationRequest
from phi3_serve.errors import EngineFailure, Phi3ServeError

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: sse.DOCUMENTED,
    400: {"description": "A parameter is refused, or contradicts another or the model"},
    401: {"description": "The server asks for an API key, and this is none of its keys"},
    404: {"description": "The model is not served here"},
    408: {"description": "The request did not finish in time"},
    413: {"description": "The body is too large"},
    415: {"description": "The body is packed, by a Content-Encoding"},
    422: {"description": "A field has the wrong type or is out of range"},
    429: {"description": "Too many requests are waiting; Retry-After says when to come again"},
    503: {"description": "The model is loading (then with Retry-After), or cannot run here"},
}


def chat_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    async def answer(http: Request, body: ChatRequest, model: str | None) -> Response:
        request = kaito.to_request(
            body,
            model=service.model_named(model),
            request_id=uuid.uuid4().hex,
            options=service.options(http),
        )
        events = service.events(request)
        if body.stream:
            return await _streamed(events, body, request)
        return await cancel_on_disconnect(http, _whole(events, body, request))

    @router.post("/chat", response_model=ChatResponse, responses=_ANSWERS)
    async def chat(http: Request, body: ChatRequest) -> Response:
        """Continue a prompt, or answer a conversation."""
        return await answer(http, body, body.model)

    @router.post("/{model:path}/chat", response_model=ChatResponse, responses=_ANSWERS)
    async def chat_with(http: Request, model: str, body: ChatRequest) -> Response:
        """As `/chat`, with the model named by the path: a KAITO client needs only a new base URL."""
        return await answer(http, body, model)

    return router


async def _whole(events: Events, body: ChatRequest, request: GenerationRequest) -> Response:
    async with aclosing(events):
        return JSONResponse(kaito.from_done(await last(events), body, request))


async def _streamed(events: Events, body: ChatRequest, request: GenerationRequest) -> Response:
    """The answer as it comes; what fails before the first event still has its own status."""
    first = await anext(events, None)
    if first is None:
        raise EngineFailure(NO_END)
    return StreamingResponse(_sse_events(first, events, body, request), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _sse_events(
    first: Delta | Done, rest: Events, body: ChatRequest, request: GenerationRequest
) -> AsyncIterator[bytes]:
    """Deltas, then what the plain call would have answered; the deltas joined are its Result."""
    async with aclosing(rest):
        if prompt := kaito.shown_prompt(body):
            yield sse.event({"Delta": prompt})
        event: Delta | Done | None = first
        try:
            while isinstance(event, Delta):
                yield sse.event({"Delta": event.text})
                event = await anext(rest, None)
            if event is None:
                raise EngineFailure(NO_END)
            answer = kaito.from_done(event, body, request)
            if event is first and (whole := answer["Result"][len(prompt) :]):  # beams: nothing could be streamed
                yield sse.event({"Delta": whole})
            yield sse.event(answer)
            yield sse.END
        except Phi3ServeError as error:
            yield sse.event({"detail": error.message}, name="error")
