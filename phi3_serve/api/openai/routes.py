"""OpenAI's endpoints: ``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from phi3_serve.api import sse
from phi3_serve.api.error_mapping import openai_error
from phi3_serve.api.openai import schema as openai
from phi3_serve.api.openai.answers import Answer, Model, ModelList, Shape, usage
from phi3_serve.api.openai.schema import ChatCompletionRequest, CompletionRequest
from phi3_serve.api.service import NO_END, Events, Service, cancel_on_disconnect, last
from phi3_serve.config import ModelConfig, is_local
from phi3_serve.core import Completion, Delta, Done, GenerationRequest, VariantState
from phi3_serve.errors import EngineFailure, Phi3ServeError
from phi3_serve.text.stop import StopText

_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"description": "A field is refused, has the wrong type, is out of range, or contradicts another"},
    401: {"description": "The server asks for an API key, and this is none of its keys"},
    404: {"description": "The model is not served here"},
    408: {"description": "The request did not finish in time"},
    413: {"description": "The body is too large"},
    415: {"description": "The body is packed, by a Content-Encoding"},
    429: {"description": "Too many requests are waiting; Retry-After says when to come again"},
    503: {"description": "The model is loading (then with Retry-After), or cannot run here"},
}


def openai_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", responses=_FAILURES)
    started = int(time.time())

    async def model(config: ModelConfig) -> Model:
        states = await service.backend.states()
        return await asyncio.to_thread(_model, config, states[config.served_name], started)

    @router.get("/models")
    async def models() -> ModelList:
        """List the served models and how each stands. Asking wakes none."""
        return ModelList(data=[await model(config) for config in service.config.models])

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> Model:
        """Tell of one model."""
        found = service.model_named(name)
        return await model(next(m for m in service.config.models if m.served_name == found))

    @router.post("/chat/completions", response_model=Answer, responses={200: sse.DOCUMENTED})
    async def chat_completions(http: Request, body: ChatCompletionRequest) -> Response:
        """Answer a conversation."""
        name, request_id = service.model_named(body.model), uuid.uuid4().hex
        requests = openai.chat_requests(
            body,
            model=name,
            request_id=request_id,
            options=service.options(http, body.prompt_cache_key),
        )
        shape = Shape(is_chat=True, model=name, id=f"chatcmpl-{request_id}", stops=body.stops)
        return await _answer(http, service, body, requests, shape)

    @router.post("/completions", response_model=Answer, responses={200: sse.DOCUMENTED})
    async def completions(http: Request, body: CompletionRequest) -> Response:
        """Continue a text."""
        name, request_id = service.model_named(body.model), uuid.uuid4().hex
        requests = openai.completion_requests(
            body,
            model=name,
            request_id=request_id,
            options=service.options(http, body.prompt_cache_key),
        )
        shape = Shape(is_chat=False, model=name, id=f"cmpl-{request_id}", stops=body.stops, echoed=body.echoed())
        return await _answer(http, service, body, requests, shape)

    return router


async def _answer(
    http: Request, service: Service, body: openai.Body, requests: Sequence[GenerationRequest], shape: Shape
) -> Response:
    sources = [service.events(request) for request in requests]
    if body.stream:
        return await _streamed(sources, body, shape)
    return await cancel_on_disconnect(http, _whole_answer(sources, body, shape))


async def _whole_answer(sources: Sequence[Events], body: openai.Body, shape: Shape) -> Response:
    done = await _all(sources)
    completions = [completion for d in done for completion in d.completions]
    return JSONResponse(shape.whole(completions, usage(done, answers_to_a_prompt=_answers_to_a_prompt(body, done))))


async def _all(sources: Sequence[Events]) -> list[Done]:
    """Every answer; if one fails, the others are given up."""
    tasks = [asyncio.create_task(_whole(source)) for source in sources]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _whole(source: Events) -> Done:
    async with aclosing(source):
        return await last(source)


async def _streamed(sources: Sequence[Events], body: openai.Body, shape: Shape) -> Response:
    """The answers as they come; what fails before the first event still has its own status."""
    events = _merged(sources)
    first = await anext(events, None)
    if first is None:
        raise EngineFailure(NO_END)
    chunks = _chunks(first, events, body, shape)
    return StreamingResponse(chunks, media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def _chunks(
    first: tuple[int, Delta | Done],
    rest: AsyncGenerator[tuple[int, Delta | Done], None],
    body: openai.Body,
    shape: Shape,
) -> AsyncIterator[bytes]:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    streams: dict[int, ChoiceStream] = {}
    done: dict[int, Done] = {}
    event: tuple[int, Delta | Done] | None = first
    async with aclosing(rest):
        try:
            while event is not None:
                number, content = event
                if isinstance(content, Done):
                    done[number] = content
                for choice in _choices_of(number, content, streams, shape):
                    yield sse.event(shape.chunk([choice], None, with_usage=with_usage))
                event = await anext(rest, None)
            if with_usage:
                in_order = [done[number] for number in sorted(done)]
                counts = usage(in_order, answers_to_a_prompt=_answers_to_a_prompt(body, in_order))
                yield sse.event(shape.chunk([], counts, with_usage=True))
            yield sse.END
        except Phi3ServeError as error:
            yield sse.event(openai_error(error))


class ChoiceStream:
    """The chunks of one choice."""

    def __init__(self, index: int, shape: Shape) -> None:
        self._index = index
        self._shape = shape
        self._text = StopText(shape.stops)
        self._has_begun = False
        self._has_text = False

    def add(self, text: str) -> list[dict[str, Any]]:
        """What the next piece of the answer's text adds."""
        self._has_text = True
        return self._pieces(self._text.add(text))

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        """What is left at the end: all of the text, where none could be streamed."""
        pieces = [] if self._has_text else self.add(completion.text)
        rest = self._pieces(self._text.finish())
        return [*pieces, *rest, self._shape.end(self._index, completion)]

    def _pieces(self, text: str) -> list[dict[str, Any]]:
        opening = None if self._has_begun else self._shape.first(self._index)
        self._has_begun = True
        return [*([opening] if opening else []), *([self._shape.piece(self._index, text)] if text else [])]


def _choices_of(
    number: int, content: Delta | Done, streams: dict[int, ChoiceStream], shape: Shape
) -> list[dict[str, Any]]:
    """What an event of request ``number`` says of its choices; beams have several, one after the other."""

    def stream(index: int) -> ChoiceStream:
        return streams.setdefault(index, ChoiceStream(index, shape))

    if isinstance(content, Delta):
        return stream(number).add(content.text)
    first = number * len(content.completions)
    return [part for at, c in enumerate(content.completions) for part in stream(first + at).end(c)]


async def _merged(sources: Sequence[Events]) -> AsyncGenerator[tuple[int, Delta | Done], None]:
    """The events of all ``sources`` as they come, each with the number of its source."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for event in source:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Delta | Done] | Exception] = asyncio.Queue(maxsize=len(sources))

    async def forward(number: int, source: Events) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    await queue.put((number, event))
                    if isinstance(event, Done):
                        return
            raise EngineFailure(NO_END)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(forward(number, source)) for number, source in enumerate(sources)]
    try:
        running = len(tasks)
        while running:
            found = await queue.get()
            if isinstance(found, Exception):
                raise found
            running -= isinstance(found[1], Done)
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _answers_to_a_prompt(body: openai.Body, done: Sequence[Done]) -> int:
    """How many of the requests share a prompt: all answers but those of one beam search are requests of their own."""
    several_of_one = any(len(d.completions) > 1 for d in done)
    return 1 if several_of_one else body.n or 1


def _model(config: ModelConfig, state: VariantState, started: int) -> Model:
    return Model(
        id=config.served_name,
        created=started,
        root=config.checkpoint if not is_local(config.checkpoint) else config.served_name,
        max_model_len=_context_length(config),
        state=state.state,
        detail=state.detail or None,
    )


def _context_length(config: ModelConfig) -> int | None:
    """The catalogue's figure; for another source that of its config.json, where this machine has it."""
    if config.source is None and config.variant is not None:
        return config.variant.context_length
    try:
        written = json.loads((Path(config.checkpoint) / "config.json").read_text(encoding="utf-8"))
        return int(written["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
