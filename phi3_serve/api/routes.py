"""The HTTP half: every route, over a backend that it knows only by ``core.Backend``."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from phi3_serve import __version__, catalogue
from phi3_serve.api import kaito, sse
from phi3_serve.api.body_limit import BodyLimitMiddleware
from phi3_serve.api.failures import answer_failures_as_detail
from phi3_serve.api.kaito import ChatRequest, ChatResponse, HealthStatus, MessageResponse
from phi3_serve.config import AppConfig
from phi3_serve.core import Backend, Delta, Done, GenerationRequest
from phi3_serve.errors import EngineFailure, Phi3ServeError, UnknownModel, nearest
from phi3_serve.observability.metrics import CONTENT_TYPE, RequestMetrics, asks_for_prometheus

NO_END = "The answer broke off before its end."
_CHAT_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "A parameter is refused, or contradicts another or the model"},
    404: {"description": "The model is not served here"},
    408: {"description": "The request did not finish in time"},
    413: {"description": "The body is too large"},
    422: {"description": "A field has the wrong type or is out of range"},
    429: {"description": "Too many requests are waiting; Retry-After says when to come again"},
    503: {"description": "The model is loading (then with Retry-After), or cannot run here"},
}


def create_app(backend: Backend, config: AppConfig) -> FastAPI:
    """The ASGI app."""
    app = FastAPI(
        title="phi3-serve",
        description="Microsoft's Phi-3 models behind KAITO's POST /chat.",
        version=__version__,
    )
    app.add_middleware(BodyLimitMiddleware, max_bytes=config.limits.max_body_bytes)
    answer_failures_as_detail(app)
    measurements = RequestMetrics()
    served = [model.served_name for model in config.models]

    def model_named(name: str | None) -> str:
        found = config.default_model_name if name is None else catalogue.find(name, served)
        if found is None:
            hint = nearest(str(name), served)
            known = f"did you mean {hint}?" if hint else f"served are {', '.join(served)}."
            raise UnknownModel(f"Model {str(name)[:128]} is not served here; {known}", "model")
        return found

    async def answer(body: ChatRequest, model: str | None) -> Response:
        request = kaito.to_request(
            body,
            model=model_named(model),
            request_id=uuid.uuid4().hex,
            timeout_s=config.limits.request_timeout_s,
        )
        events = measurements.measured(request.model, backend.generate(request))
        if body.stream:
            return await _streamed(events, body, request)
        async with aclosing(events):
            return JSONResponse(kaito.from_done(await _last(events), body, request))

    @app.post("/chat", response_model=ChatResponse, responses=_CHAT_FAILURES)
    async def chat(body: ChatRequest) -> Response:
        """Continue a prompt, or answer a conversation."""
        return await answer(body, body.model)

    @app.post("/{model:path}/chat", response_model=ChatResponse, responses=_CHAT_FAILURES)
    async def chat_with(model: str, body: ChatRequest) -> Response:
        """As `/chat`, with the model named by the path: a KAITO client needs only a new base URL."""
        return await answer(body, model)

    @app.get("/")
    async def home() -> MessageResponse:
        """Tell that the server runs."""
        return MessageResponse()

    @app.get("/health", responses={500: {"description": "The default model could not be started"}})
    async def health() -> HealthStatus:
        """Tell whether the server lives; a model that is loading does not make it unhealthy."""
        state = (await backend.states())[config.default_model_name]
        if state.state == "failed":
            raise EngineFailure(f"Model {config.default_model_name} could not be started. {state.detail}")
        return HealthStatus()

    @app.get("/ready", responses={503: {"description": "The default model cannot answer yet"}})
    async def ready() -> Response:
        """Tell whether the default model answers, and how every model stands. Asking wakes none."""
        states = await backend.states()
        is_ready = states[config.default_model_name].state == "ready"
        models = {name: {"state": s.state, **({"detail": s.detail} if s.detail else {})} for name, s in states.items()}
        return JSONResponse({"ready": is_ready, "models": models}, 200 if is_ready else 503)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """The hardware, as KAITO gave it: the GPUs of running models, or the CPU. Counters for Prometheus' Accept."""
        if asks_for_prometheus(request.headers.get("accept", "")):
            return Response(measurements.exposition(), media_type=CONTENT_TYPE)
        return JSONResponse(kaito.host_metrics(await backend.host_info()))

    return app


async def _last(events: AsyncIterator[Delta | Done]) -> Done:
    async for event in events:
        if isinstance(event, Done):
            return event
    raise EngineFailure(NO_END)


async def _streamed(
    events: AsyncGenerator[Delta | Done, None], body: ChatRequest, request: GenerationRequest
) -> Response:
    """The answer as it comes; what fails before the first event still has its own status."""
    first = await anext(events, None)
    if first is None:
        raise EngineFailure(NO_END)
    return StreamingResponse(_sse_events(first, events, body, request), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _sse_events(
    first: Delta | Done,
    rest: AsyncGenerator[Delta | Done, None],
    body: ChatRequest,
    request: GenerationRequest,
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
