"""OpenAI's endpoints: ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``.

They are also there without ``/v1``, as in llama.cpp: a client whose base URL lacks it gets its answer.
"""

import asyncio
import time
import uuid
from collections.abc import Sequence
from itertools import chain

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from phi3_serve.api import sse
from phi3_serve.api.adapters import require_adapter
from phi3_serve.api.error_mapping import STATUS, documented
from phi3_serve.api.headers import WARNING
from phi3_serve.api.openai.best_answers import best_answers
from phi3_serve.api.openai.calls import CallFormat
from phi3_serve.api.openai.chat_response import ChatResponseBuilder
from phi3_serve.api.openai.completion_response import CompletionResponseBuilder
from phi3_serve.api.openai.models import described_models
from phi3_serve.api.openai.requests import chat_requests, completion_requests
from phi3_serve.api.openai.response_builder import ResponseBuilder
from phi3_serve.api.openai.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    CompletionResponse,
    Model,
    ModelList,
    RequestBody,
)
from phi3_serve.api.openai.shown import echoed_message, shown_of, streamed_usage
from phi3_serve.api.openai.stream import completion_events, error_event, merged
from phi3_serve.api.openai.usage import usage_of
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.api.sent_names import with_names_sent
from phi3_serve.api.service import Events, Service, cancel_on_disconnect, final_event
from phi3_serve.core.event import Done
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.errors import ModelUnavailable, Unauthorized, UnknownModel

_COMPLETION_RESPONSES = {200: sse.DOCUMENTED, **documented(STATUS, OPENAI.validation_status)}


def openai_router(service: Service) -> APIRouter:
    """OpenAI's routes over ``service``."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/models", include_in_schema=False)
    @router.get("/v1/models", responses=documented([Unauthorized, ModelUnavailable]))
    async def models() -> ModelList:
        """List the served models with their states, each followed by its adapters. The call starts no model."""
        states = await service.backend.states()
        models = [
            await asyncio.to_thread(described_models, config, states[config.served_name], started)
            for config in service.config.models
        ]
        return ModelList(data=list(chain.from_iterable(models)))

    @router.get("/models/{name:path}", include_in_schema=False)
    @router.get("/v1/models/{name:path}", responses=documented([Unauthorized, UnknownModel, ModelUnavailable]))
    async def one_model(name: str) -> Model:
        """Describe one model, or one adapter of a model."""
        named = service.model_named(name)
        config, state = service.config_of(named.model), (await service.backend.states())[named.model]
        require_adapter(named, config, state)
        models = await asyncio.to_thread(described_models, config, state, started)
        return next(model for model in models if model.id == named.name)

    @router.post("/chat/completions", include_in_schema=False)
    @router.post("/v1/chat/completions", response_model=CompletionResponse, responses=_COMPLETION_RESPONSES)
    async def chat_completions(http: Request, body: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        model, request_id = service.model_named(body.model), uuid.uuid4().hex
        options = service.options(http, stream=bool(body.stream), session=body.prompt_cache_key)
        offer = body.offered()
        requests = chat_requests(body, offer, model=model, request_id=request_id, options=options)
        builder = ChatResponseBuilder(
            id=f"chatcmpl-{request_id}",
            model=model.name,
            shown=shown_of(body),
            warnings=body.warnings,
            role=body.answer_role,
            echoed=echoed_message(body),
            calls=CallFormat(offer, body.is_legacy),
        )
        response = await _respond(http, service, body, requests, builder)
        if body.warnings:
            response.headers[WARNING] = " ".join(body.warnings)
        return response

    @router.post("/completions", include_in_schema=False)
    @router.post("/v1/completions", response_model=CompletionResponse, responses=_COMPLETION_RESPONSES)
    async def completions(http: Request, body: CompletionRequest) -> Response:
        """Continue a text."""
        model, request_id = service.model_named(body.model), uuid.uuid4().hex
        options = service.options(http, stream=bool(body.stream), session=body.prompt_cache_key)
        requests = completion_requests(body, model=model, request_id=request_id, options=options)
        builder = CompletionResponseBuilder(id=f"cmpl-{request_id}", model=model.name, shown=shown_of(body))
        return await _respond(http, service, body, requests, builder)

    @router.post("/embeddings", include_in_schema=False)
    @router.post("/v1/embeddings", include_in_schema=False)
    async def embeddings() -> Response:
        """Say that there are none."""
        raise HTTPException(404, "Embeddings are not offered: Phi-3 models generate text.")

    return router


async def _respond(
    http: Request,
    service: Service,
    body: RequestBody,
    requests: Sequence[GenerationRequest],
    builder: ResponseBuilder,
) -> Response:
    sources = [with_names_sent(service.events(http, request), body.names_sent) for request in requests]
    n = body.num_answers
    if body.stream:
        chunks = completion_events(merged(sources), builder, n=n, usage=streamed_usage(body))
        return await cancel_on_disconnect(http, sse.respond(chunks, error_event))

    async def plain() -> Response:
        done = await _all_answers(sources)
        usage = usage_of(done, body.num_candidates, has_answer=builder.shown.answer)
        if body.picks_best:
            done = best_answers(done, num_candidates=body.num_candidates, n=n)
        if not builder.shown.needs_prompt:
            return JSONResponse(builder.response(done, usage))
        # the log-probabilities of a long prompt take a second
        return await asyncio.to_thread(lambda: JSONResponse(builder.response(done, usage)))

    return await cancel_on_disconnect(http, plain())


async def _all_answers(sources: Sequence[Events]) -> list[Done]:
    """The answers to all requests. If one fails, the others are cancelled."""
    tasks = [asyncio.create_task(final_event(source)) for source in sources]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
