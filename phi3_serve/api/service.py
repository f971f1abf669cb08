"""What every API does with a request: find its model, run it, count it, wait for its events."""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import Request, Response

from phi3_serve import catalogue
from phi3_serve.api.adapters import MAX_NAME, NamedModel
from phi3_serve.api.keys import ApiKey, key_of
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.api.request_state import record_of, request_id_of
from phi3_serve.api.sent_names import as_sent
from phi3_serve.config.app import AppConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.core.backend_protocol import Backend
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation, Prompt, RawPrompt, TokenPrompt
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.errors import EngineFailure, InvalidRequest, Phi3ServeError, UnknownModel, did_you_mean
from phi3_serve.observability.metrics import RequestMetrics
from phi3_serve.observability.request_record import Generation, RequestRecord
from phi3_serve.overload import PLAIN_QUEUE_TIMEOUT_S

CLIENT_CLOSED_REQUEST = 499  # nginx's status; the client is gone and does not read it
CHARACTERS_PER_TOKEN = 4  # of English text, by https://help.openai.com/en/articles/4936856
INCOMPLETE_ANSWER = "The answer broke off before its end."
SESSION_HEADER = "x-session-id"  # Ray Serve's name for it
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})(?:$|[,;\s])")  # RFC 7240, section 4.3
Events = AsyncGenerator[Delta | Done, None]


class Service:
    """The backend as the routes use it."""

    def __init__(self, backend: Backend, config: AppConfig, limits: CurrentLimits, metrics: RequestMetrics) -> None:
        self.backend = backend
        self.config = config
        self.limits = limits
        self.metrics = metrics
        self._served_names = [model.served_name for model in config.models]

    def model_named(self, name: str | None, spelled: Callable[[str], str] = str) -> NamedModel:
        """The served model that ``name`` spells, or a served model and the adapter after a colon; the default for None.

        Whether there is such an adapter is known to the replicas. ``spelled`` gives another API's name of a model its
        spelling here.

        Raises:
            UnknownModel: no served model has this name.
        """
        if name is None:
            return NamedModel(self.config.default_model_name)
        if (model := catalogue.find(spelled(name), self._served_names)) is not None:
            return NamedModel(model)
        base, _, adapter = name.rpartition(":")
        if 0 < len(adapter) <= MAX_NAME and (model := catalogue.find(spelled(base), self._served_names)) is not None:
            return NamedModel(model, adapter)
        all_names = f"; served are {', '.join(self._served_names)}."
        hint = did_you_mean(name, self._served_names, all_names, quote="")
        raise UnknownModel(f"Model {name[:128]} is not served here{hint}", "model")

    def config_of(self, name: str) -> ModelConfig:
        """The config of the served model ``name``."""
        return next(model for model in self.config.models if model.served_name == name)

    def options(self, http: Request, *, stream: bool, session: str | None = None) -> RequestOptions:
        """The options of a request: from its headers, else ``session``, and from the current limits."""
        limits, wait = self.limits.current, _PREFER_WAIT.search(http.headers.get("prefer", ""))
        wait_s = min(float(wait[1]), limits.request_timeout_s) if wait else 0.0
        default_queue_timeout_s = None if stream else max(PLAIN_QUEUE_TIMEOUT_S, wait_s)
        return RequestOptions(
            session=http.headers.get(SESSION_HEADER) or session,
            wait_s=wait_s,
            queue_timeout_s=default_queue_timeout_s if limits.queue_timeout_s is None else limits.queue_timeout_s,
            timeout_s=limits.request_timeout_s,
        )

    async def tokenize(
        self,
        http: Request,
        model: str | None,
        prompt: Prompt,
        *,
        prompt_field: str,
        adapters: tuple[AdapterChoice, ...] | None = None,
        **how: bool,
    ) -> Tokenization:
        """What the tokenizer of ``model`` makes of ``prompt``. ``how``: see ``TokenizationRequest``.

        ``adapters``: those of the request; by default the one in ``model``, if there is one.

        Raises:
            Phi3ServeError: the model is unknown or cannot answer, or what ``prompt_field`` has is wrong.
        """
        named = self.model_named(model)
        self.metrics.count_tokenization(named.model)
        if adapters is None:
            adapters = named.adapters()
        options = self.options(http, stream=False)
        request = TokenizationRequest(model=named.model, prompt=prompt, adapters=adapters, options=options, **how)
        try:
            return await self.backend.tokenize(request)
        except InvalidRequest as error:
            raise as_sent(error, {"prompt": prompt_field, "model": "model"}) from error

    def events(self, http: Request, request: GenerationRequest) -> Events:
        """The events of ``request``, counted in the metrics and for the API key of ``http``."""
        key, record = key_of(http.scope), record_of(http.scope)
        # The id of the client makes the request findable in the log of its replica. It may not be unique.
        request = replace(request, request_id=f"{request_id_of(http.scope)}/{request.request_id}")
        events = self.backend.generate(request)
        if record is not None:
            events = _recorded(record, request, events)
        if key is None:
            return self.metrics.observe(request, events)
        return self.metrics.observe(request, _charged(key, request.prompt, events), api_key=key.name)


async def _recorded(record: RequestRecord, request: GenerationRequest, events: Events) -> Events:
    """``events`` as they are, noted in ``record``."""
    generation = Generation(request)
    record.generations.append(generation)
    try:
        async with aclosing(events):
            async for event in events:
                generation.note(event)
                yield event
    except Phi3ServeError as error:
        generation.fail(error)
        raise
    finally:
        generation.ended_at = time.time_ns()


async def _charged(key: ApiKey, prompt: Prompt, events: Events) -> Events:
    """``events`` as they are, charged to ``key``. A request that fails costs nothing.

    The tokens of a request that the client abandons are not known; they are estimated from the text.
    """
    num_tokens = _estimated_tokens(prompt)
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Done):
                    num_tokens = event.usage.prompt_tokens + event.usage.completion_tokens
                else:
                    num_tokens += math.ceil(len(event.text) / CHARACTERS_PER_TOKEN)
                yield event
    except Phi3ServeError:
        num_tokens = 0
        raise
    finally:
        key.spend(num_tokens)


def _estimated_tokens(prompt: Prompt) -> int:
    match prompt:
        case TokenPrompt(token_ids):
            return len(token_ids)
        case RawPrompt(text):
            return math.ceil(len(text) / CHARACTERS_PER_TOKEN)
        case Conversation(messages):
            return math.ceil(sum(len(message.content) for message in messages) / CHARACTERS_PER_TOKEN)


async def final_event(events: Events) -> Done:
    """The event that holds the whole answer. Closes ``events``.

    Raises:
        EngineFailure: the events end without it.
    """
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Done):
                return event
    raise EngineFailure(INCOMPLETE_ANSWER)


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The response of ``work``, which is cancelled when the client disconnects.

    Starlette notices a disconnect only while it sends a stream. Behind Ray Serve's HAProxy nothing else notices it.
    """
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        for task in (working, disconnected):
            task.cancel()
        await asyncio.gather(working, disconnected, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Wait until the client closes the connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
