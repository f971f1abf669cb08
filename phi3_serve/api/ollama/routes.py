"""ollama's endpoints: ``/api/chat``, ``/api/generate``, ``/api/tags``, ``/api/ps``, ``/api/show``, ``/api/version``."""

import asyncio
import uuid
from itertools import chain

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from phi3_serve.api import streams
from phi3_serve.api.adapters import require_adapter
from phi3_serve.api.error_mapping import STATUS, documented
from phi3_serve.api.ollama.answers import (
    FORM,
    AnswerWriter,
    ChatWriter,
    GenerateWriter,
    error_line,
    lines,
    now,
    only,
)
from phi3_serve.api.ollama.errors import OLLAMA
from phi3_serve.api.ollama.models import running_model, served_models, shown_model
from phi3_serve.api.ollama.requests import generation_request, named_model, prompt_of
from phi3_serve.api.ollama.schema import (
    OllamaChatRequest,
    OllamaChatResponse,
    OllamaGenerateRequest,
    OllamaGenerateResponse,
    OllamaRunningModels,
    OllamaServedModels,
    OllamaShowRequest,
    OllamaShowResponse,
    OllamaVersion,
)
from phi3_serve.api.sent_names import with_names_sent
from phi3_serve.api.service import Service, cancel_on_disconnect, final_event
from phi3_serve.api.tools.offer import Offer
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.errors import InvalidRequest, ModelUnavailable, Unauthorized

API_VERSION = "0.12.6"
"""Of ollama. Clients refuse to talk to a version that they take for too old."""
_STREAM = {
    "description": "The answer; with stream, its lines",
    "content": {FORM.media_type: {"schema": {"type": "object"}}},
}
_RESPONSES = {200: _STREAM, **documented(STATUS, OLLAMA.validation_status)}
_LIST_RESPONSES = documented([Unauthorized, ModelUnavailable])


def ollama_router(service: Service) -> APIRouter:
    """Ollama's routes over ``service``."""
    router = APIRouter()
    started = now()

    @router.head("/", include_in_schema=False)
    async def heartbeat() -> Response:
        """Show ollama's command line that the server runs."""
        return Response()

    @router.post("/api/chat", response_model=OllamaChatResponse, responses=_RESPONSES)
    async def chat(http: Request, body: OllamaChatRequest) -> Response:
        """Answer a conversation, as ollama does."""
        offer = body.offered()
        writer = ChatWriter(model=body.model, calls=None if offer is None else offer.calls)
        return await _respond(http, service, body, writer, offer)

    @router.post("/api/generate", response_model=OllamaGenerateResponse, responses=_RESPONSES)
    async def generate(http: Request, body: OllamaGenerateRequest) -> Response:
        """Answer a question, as ollama does."""
        return await _respond(http, service, body, GenerateWriter(model=body.model))

    @router.get("/api/tags", responses=_LIST_RESPONSES)
    async def tags() -> OllamaServedModels:
        """List the served models, each followed by its adapters. The call starts no model."""
        states = await service.backend.states()
        models = [
            await asyncio.to_thread(served_models, config, states[config.served_name], started)
            for config in service.config.models
        ]
        return OllamaServedModels(models=list(chain.from_iterable(models)))

    @router.get("/api/ps", responses=_LIST_RESPONSES)
    async def ps() -> OllamaRunningModels:
        """List the models that are ready."""
        states = await service.backend.states()
        ready = [config for config in service.config.models if states[config.served_name].state == "ready"]
        models = [await asyncio.to_thread(running_model, config, states[config.served_name]) for config in ready]
        return OllamaRunningModels(models=models)

    @router.post("/api/show", responses=documented(STATUS, OLLAMA.validation_status))
    async def show(body: OllamaShowRequest) -> OllamaShowResponse:
        """Describe one model."""
        if (given := body.model or body.name) is None:
            raise InvalidRequest("`model` is missing: the model to describe.", "model")
        named = named_model(service, given)
        config, state = service.config_of(named.model), (await service.backend.states())[named.model]
        require_adapter(named, config, state)
        is_adapter = named.adapter is not None
        return await asyncio.to_thread(shown_model, config, state, started, is_adapter=is_adapter)

    @router.get("/api/version", responses=documented([Unauthorized]))
    async def version() -> OllamaVersion:
        """Show the version of ollama whose API this is."""
        return OllamaVersion(version=API_VERSION)

    return router


async def _respond(
    http: Request,
    service: Service,
    body: OllamaChatRequest | OllamaGenerateRequest,
    writer: AnswerWriter,
    offer: Offer | None = None,
) -> Response:
    model, prompt = named_model(service, body.model), prompt_of(body, offer)
    if prompt is None:
        # A replica that answers this has its model.
        adapters = model.adapters(body.adapters)
        await service.tokenize(http, model.name, RawPrompt(""), prompt_field=body.prompt_field, adapters=adapters)
        if body.streams:
            return await streams.respond(only(writer.started()), error_line, FORM)
        return JSONResponse(writer.started())
    request = generation_request(
        body,
        prompt,
        offer,
        model=model,
        request_id=uuid.uuid4().hex,
        options=service.options(http, stream=body.streams),
    )
    events = with_names_sent(service.events(http, request), body.names_sent)
    if body.streams:
        return await cancel_on_disconnect(http, streams.respond(lines(events, writer), error_line, FORM))

    async def plain() -> Response:
        return JSONResponse(writer.whole(await final_event(events)))

    return await cancel_on_disconnect(http, plain())
