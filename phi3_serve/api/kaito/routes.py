"""KAITO's endpoints: ``POST /chat``, ``GET /``, ``GET /health``, ``GET /metrics``."""

import uuid

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from phi3_serve.api import sse
from phi3_serve.api.error_mapping import STATUS, documented
from phi3_serve.api.headers import prefers_html
from phi3_serve.api.kaito.answers import chat_events, chat_response, error_event
from phi3_serve.api.kaito.errors import KAITO
from phi3_serve.api.kaito.host_metrics import host_metrics
from phi3_serve.api.kaito.requests import generation_request
from phi3_serve.api.kaito.schema import ChatRequest, ChatResponse, HealthStatus, MessageResponse
from phi3_serve.api.sent_names import with_names_sent
from phi3_serve.api.service import Service, cancel_on_disconnect, final_event
from phi3_serve.errors import EngineFailure, ModelUnavailable, Unauthorized
from phi3_serve.observability.engine_metrics import EngineFacts
from phi3_serve.observability.metrics import CONTENT_TYPE, accepts_prometheus

_CHAT_RESPONSES = {200: sse.DOCUMENTED, **documented(STATUS, KAITO.validation_status)}
_HEALTH_RESPONSES = {500: {"description": "The default model could not be started"}, **documented([ModelUnavailable])}


def kaito_router(service: Service) -> APIRouter:
    """KAITO's routes over ``service``."""
    router = APIRouter()

    @router.post("/chat", response_model=ChatResponse, responses=_CHAT_RESPONSES)
    async def chat(http: Request, body: ChatRequest) -> Response:
        """Continue a prompt, or answer a conversation."""
        return await _chat(service, http, body, body.model)

    @router.post("/v1/chat", include_in_schema=False)
    async def chat_of_openai() -> Response:
        """Say where OpenAI's endpoint is."""
        raise HTTPException(
            404, "POST /v1/chat is not an endpoint: OpenAI's is /v1/chat/completions, and KAITO's is /chat."
        )

    @router.post("/{model:path}/chat", response_model=ChatResponse, responses=_CHAT_RESPONSES)
    async def chat_with(http: Request, model: str, body: ChatRequest) -> Response:
        """The same as `/chat`; the path names the model, so a KAITO client needs only a new base URL."""
        return await _chat(service, http, body, model)

    @router.get("/", response_model=MessageResponse, responses={307: {"description": "The page, for a browser"}})
    async def home(http: Request) -> Response:
        """Show that the server runs. A browser, which asks for HTML in `Accept`, is sent to the page `/ui`."""
        if prefers_html(http.headers.get("accept", "")):
            root = http.scope.get("root_path", "")
            return RedirectResponse(f"{root}/ui", headers={"Vary": "Accept"})
        return JSONResponse(MessageResponse().model_dump(), headers={"Vary": "Accept"})

    @router.head("/health", include_in_schema=False)  # as `wget --spider` and some monitors ask
    @router.get("/health", responses=_HEALTH_RESPONSES)
    async def health() -> HealthStatus:
        """Show whether the server is healthy. A model that is loading, or that is tried again, counts as healthy."""
        model = service.config.default_model_name
        state = (await service.backend.states())[model]
        if state.state == "failed" and state.retry_after_s is None:
            raise EngineFailure(f"Model {model} could not be started. {state.detail}")
        return HealthStatus()

    @router.get("/metrics", responses=documented([Unauthorized, ModelUnavailable]))
    async def metrics(request: Request) -> Response:
        """Show the GPUs of running models, or the CPU, as KAITO did.

        An `Accept` header with `text/plain` or `openmetrics`, as Prometheus sends it, gets counters for Prometheus.
        """
        if accepts_prometheus(request.headers.get("accept", "")):
            return Response(await _exposition(service), media_type=CONTENT_TYPE)
        return JSONResponse(host_metrics(await service.backend.host_info()))

    return router


async def _exposition(service: Service) -> bytes:
    """The counters, and what the engines of ready models run on."""
    try:
        states = await service.backend.states()
    except ModelUnavailable:  # no reading of the cluster has succeeded yet
        states = {}
    service.metrics.show_states(states)
    engines = {name: state.engine for name, state in states.items() if state.engine is not None}
    return service.metrics.exposition(EngineFacts(engines))


async def _chat(service: Service, http: Request, body: ChatRequest, model: str | None) -> Response:
    request = generation_request(
        body,
        model=service.model_named(model),
        request_id=uuid.uuid4().hex,
        options=service.options(http, stream=body.stream),
    )
    events = with_names_sent(service.events(http, request), body.names_sent)
    if body.stream:
        return await cancel_on_disconnect(http, sse.respond(chat_events(events, body, request), error_event))

    async def plain() -> Response:
        return JSONResponse(chat_response(await final_event(events), body, request))

    return await cancel_on_disconnect(http, plain())
