"""One variant on one device: text to token ids, the engine, token ids to text. Nothing here blocks the event loop."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from phi3_serve.config.defaults import problem_of_defaults
from phi3_serve.config.limits import QueueLimitsConfig
from phi3_serve.config.user_config import LiveModelConfig
from phi3_serve.core.adapter import Adapter, AppliedAdapter
from phi3_serve.core.constraint import Constraint
from phi3_serve.core.engine_event import EngineEvent
from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import SIGN_OF_LIFE_INTERVAL_S, Begun, Event, Failed, Queued
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.host_info import GpuInfo
from phi3_serve.core.prompt import Conversation, RawPrompt
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.engine.allocator_options import set_allocator_options
from phi3_serve.errors import (
    EngineFailure,
    InvalidRequest,
    ModelNotLoaded,
    Phi3ServeError,
    PromptTooLong,
    UnknownModel,
)
from phi3_serve.observability.engine_metrics import EngineMetrics, EngineReading
from phi3_serve.overload import STARTING_RETRY_AFTER_S
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve
from phi3_serve.serving.adapters import Adapters
from phi3_serve.serving.announced_adapters import announce_adapters
from phi3_serve.serving.encoding_threads import Encoding, EncodingThreads
from phi3_serve.serving.event_queue import EventQueue
from phi3_serve.serving.live_settings import LiveSettings
from phi3_serve.serving.loaded_replica import deployment_of
from phi3_serve.serving.model_load import ModelLoad
from phi3_serve.serving.model_loading import RunningModel
from phi3_serve.serving.published_metrics import PublishedMetrics
from phi3_serve.serving.replica_options import ReplicaOptions
from phi3_serve.serving.replica_process import end_process, log_through_serve, replica_name
from phi3_serve.serving.scaling import scaling_statistics
from phi3_serve.serving.text_events import text_events
from phi3_serve.serving.tokenization import tokenized
from phi3_serve.text import token_limit

logger = logging.getLogger("ray.serve")

# A request that has not begun within this time is reported as queued. Most requests begin earlier, and cost no further
# message.
QUEUED_AFTER_S = 0.05
# Adapters that are in memory are found earlier.
LOADS_AFTER_S = 0.005
# From the failure of an engine to the end of its replica. Meanwhile the queued requests are reported.
LAST_REPORTS_S = 4 * QUEUED_AFTER_S


class Replica:
    """Owns one model and one engine thread, as soon as the model is loaded."""

    def __init__(self, options: ReplicaOptions, on_fatal_error: Callable[[str], None] = end_process) -> None:
        """``on_fatal_error`` gets the reason when the engine cannot go on."""
        log_through_serve()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one prompt at a time; torch needs the cores
        if options.device == "cuda":
            set_allocator_options(os.environ)
        self._options = options
        self._queue_limits = queue_limits(options.limits)
        self._defaults = options.defaults
        self._live = LiveSettings(LiveModelConfig)
        self._adapters = Adapters(options.name, options.adapter_memory_bytes, self._read_adapter)
        self._encoding_threads = EncodingThreads()
        self._on_fatal_error = on_fatal_error
        self._is_ending = False
        self._model: RunningModel | None = None
        self._load = ModelLoad(options, replica_name(), self._have, self._on_breakdown, on_fatal_error)

    async def start(self) -> None:
        """Load the model, or run without it for now: see ``ModelLoad.start``."""
        await self._load.start()

    def _have(self, model: RunningModel) -> None:
        model.engine.queue = self._queue_limits
        self._model = model

    def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Replace limits, defaults and adapters; requests in flight keep theirs. Serve also calls this at the start.

        Raises:
            Phi3ServeError: there are no defaults with which a request that sets nothing would be answered.
        """
        live = self._live.read(user_config)
        self._queue_limits = queue_limits(live.over(self._options.limits))
        if self._model is not None:
            self._model.engine.queue = self._queue_limits
        defaults = live.defaults.over(self._options.defaults)
        if not (problem := problem_of_defaults(defaults)):
            self._defaults = defaults
        elif problem_of_defaults(self._defaults):
            raise Phi3ServeError(f"The defaults of args and user_config together: {problem}")
        else:
            logger.error("user_config.defaults: %s The previous defaults stay.", problem)
        self._adapters.offer(live.adapters)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of one request; the last is Done or Failed. No silence is longer than SIGN_OF_LIFE_INTERVAL_S.

        If this process dies, the last event shows whether the request may be the cause. After Queued it is not, because
        nothing of it has run; its adapters may be loaded. After another event, or none, it may be: its first step may
        run, or its prompt may be encoded.
        """
        if (model := self._model) is None:
            yield Failed(self._not_loaded())
            return
        if self._is_ending:
            yield Queued()
        arrival = time.monotonic()
        applied: tuple[AppliedAdapter, ...] = ()
        if request.adapters:
            loading = asyncio.create_task(self._adapters.applied(request.adapters, request.options))
            async with aclosing(_while_waiting(loading, LOADS_AFTER_S)) as waits:
                async for event in waits:
                    yield event
            if (error := loading.exception()) is not None:
                yield _failed(error)
                return
            applied = loading.result()
        events = EventQueue()
        submit = partial(self._submit, model, request, arrival, applied, events.put)
        submission = self._encoding_threads.start(request.prompt, submit)
        try:
            async with aclosing(
                _while_encoding(submission, request.options.after(time.monotonic() - arrival))
            ) as waits:
                async for event in waits:
                    yield event
                    if isinstance(event, Failed):
                        return
            engine_request = submission.result.result()
            has_any = await events.has_any_within(QUEUED_AFTER_S)
            if is_queued := not has_any and model.engine.announce_start(request.request_id):
                yield Queued()
            async for event in text_events(request, engine_request, events, model.tokenizer, is_queued=is_queued):
                yield event
        finally:  # also when the client has disconnected, even while the request was submitted
            submission.leave(partial(model.engine.abort, request.request_id))

    async def tokenize(self, request: TokenizationRequest) -> AsyncGenerator[Event | Tokenization, None]:
        """What the tokenizer makes of ``request``, or Failed, after signs of life.

        A long text takes a second, and waits for others: so not on the event loop.
        """
        if (model := self._model) is None:
            yield Failed(self._not_loaded())
            return
        try:
            self._adapters.check(request.adapters)
        except UnknownModel as error:
            yield Failed(error)
            return
        encoding = self._encoding_threads.start(request.prompt, partial(tokenized, model, request))
        try:
            async with aclosing(_while_encoding(encoding, request.options)) as waits:
                async for event in waits:
                    yield event
                    if isinstance(event, Failed):
                        return
            yield encoding.result.result()
        finally:  # also when the client has disconnected
            encoding.leave(lambda: None)

    async def ping(self) -> None:
        """Do nothing: the call alone starts a replica of a variant that is scaled to zero."""

    async def host_info(self) -> GpuInfo:
        """The replica's GPU."""
        from phi3_serve.engine.device import gpu_info

        return await asyncio.to_thread(gpu_info)

    async def check_health(self) -> None:
        """Report a fatal error if the engine cannot answer. Serve calls this every ``health.check_period_s``.

        A replica that has no model yet is healthy: a new one would have none either.

        Raises:
            EngineFailure: the engine's thread is dead, or hangs in one step.
        """
        if self._model is None:
            return
        try:
            self._model.engine.check_health()
        except EngineFailure as error:
            self._is_ending = True
            await asyncio.sleep(LAST_REPORTS_S)
            self._on_fatal_error(error.message)
            raise

    def _on_breakdown(self, error: Exception) -> None:
        """End the replica; the engine's thread calls this."""
        self._is_ending = True
        time.sleep(LAST_REPORTS_S)
        self._on_fatal_error(f"{type(error).__name__}: {error}")

    def read_engine(self) -> EngineReading | None:
        """The engine at this moment; None without a model. Reading a GPU takes milliseconds."""
        if (model := self._model) is None:
            return None
        gpu = None
        if self._options.device == "cuda":
            from phi3_serve.engine.device import gpu_info

            gpu = gpu_info()
        engine = model.engine
        return EngineReading(
            info=engine.info,
            load=engine.load,
            statistics=engine.statistics,
            load_s=model.load_s,
            adapters=self._adapters.counts,
            gpu=gpu,
        )

    async def record_autoscaling_stats(self) -> Mapping[str, float]:
        """What the controller of Serve needs to know of this replica, beside its requests. Serve calls this by name."""
        return {} if self._model is None else scaling_statistics(self._model.engine.load)

    async def load(self) -> Mapping[str, int]:
        """Running requests, waiting requests, and blocks of the cache in use."""
        return {} if self._model is None else asdict(self._model.engine.load)

    def _not_loaded(self) -> ModelNotLoaded:
        status, now = self._load.status, time.time()
        if status is None:
            return ModelNotLoaded(f"Model {self._options.name} is loading.", STARTING_RETRY_AFTER_S)
        retry_after_s = status.wait_s(now) if status.heals else None
        return ModelNotLoaded(f"Model {self._options.name} is not loaded. {status.in_words(now)}", retry_after_s)

    def _read_adapter(self, name: str, directory: Path) -> Adapter:
        model = self._model
        assert model is not None  # noqa: S101 - only a request to a loaded model names an adapter
        return model.engine.load_adapter(name, str(directory))

    def _submit(
        self,
        model: RunningModel,
        request: GenerationRequest,
        arrival: float,
        adapters: tuple[AppliedAdapter, ...],
        on_event: Callable[[EngineEvent], None],
    ) -> EngineRequest:
        """Give the engine the request. A long prompt takes tens of milliseconds, so not on the event loop.

        ``arrival`` of the request in the replica: ``time.monotonic()`` seconds.
        """
        engine_request = replace(self._prepare(model, request, arrival), adapters=adapters)
        model.engine.submit(engine_request, on_event)
        return engine_request

    def _prepare(self, model: RunningModel, request: GenerationRequest, arrival: float) -> EngineRequest:
        """Resolve the parameters and encode the prompt. The time since ``arrival`` counts."""
        is_turn = isinstance(request.prompt, Conversation)
        of_model = _turn_defaults(model) if is_turn else model.loaded.defaults
        of_config = self._defaults.under_lengths_of(request.parameters)
        of_api = request.api_defaults.under_lengths_of(request.parameters.over(of_config))
        parameters = resolve(request.parameters, of_config, of_api, of_model, tool_calls=request.tool_calls)
        if is_turn:  # a tokenizer may not mark these as special, and then they would be part of the text
            ends = model.tokenizer.end_of_turn_ids.intersection(parameters.eos_token_ids)
            parameters = replace(parameters, stop_token_ids=(*parameters.stop_token_ids, *ends))
        if parameters.bad_words:
            bad_words_ids = model.tokenizer.bad_words_ids(parameters.bad_words)
            parameters = replace(parameters, bad_words_ids_of_answer=bad_words_ids)
        is_cut = request.truncate_prompt or parameters.truncate_prompt_tokens is not None
        limit = (token_limit.of_encoding if is_cut else token_limit.of_context)(model.loaded.context_length)
        try:
            prompt_ids = model.tokenizer.encode(request.prompt, limit=limit)
            options = request.options.after(time.monotonic() - arrival)
            prepared = prepare(
                request.request_id,
                prompt_ids,
                parameters,
                context_length=model.loaded.context_length,
                timeout_s=options.timeout_s,
                queue_timeout_s=options.queue_timeout_s,
                num_prefix_tokens=_prefix_length(model, request),
                truncates_prompt=request.truncate_prompt,
                stream=request.stream,
            )
        except PromptTooLong as error:
            raise _with_tools(error, model, request) from error
        return replace(prepared, constraint=_constraint(model, request, prepared))


class ServedReplica(Replica):
    """A replica in Serve, which awaits the constructor and can end the replica meanwhile: the event loop is free."""

    async def __init__(self, options: ReplicaOptions) -> None:  # type: ignore[misc]
        super().__init__(options)
        published = PublishedMetrics(EngineMetrics(options.name, self.read_engine))
        self._publishing = asyncio.create_task(published.publish_forever(self._announce_changes))
        await self.start()

    async def _announce_changes(self) -> None:
        if self._model is not None:
            await self._load.announce_changes(self._model.engine.info)

    async def reconfigure(self, user_config: Mapping[str, object]) -> None:  # type: ignore[override]
        """See the base class. Serve would call a plain method in a thread, beside the event loop.

        The ingress learns which adapters there are.
        """
        super().reconfigure(user_config)
        if (name := replica_name()) is not None:
            await asyncio.to_thread(announce_adapters, deployment_of(name), self._adapters.offered)


async def _while_waiting(wait: asyncio.Task[Any], queued_after_s: float) -> AsyncGenerator[Event, None]:
    """Events until ``wait``, after which a request goes on, is done; none if it is done in ``queued_after_s``."""
    timeout_s, waits = queued_after_s, False
    try:
        while not (await asyncio.wait({wait}, timeout=timeout_s))[0]:
            timeout_s, waits = SIGN_OF_LIFE_INTERVAL_S, True
            yield Queued()
        if waits and wait.exception() is None:
            yield Begun()  # from here on the request may be the cause if the process dies
    finally:  # also when the client has disconnected
        wait.cancel()


async def _while_encoding(encoding: Encoding[Any], options: RequestOptions) -> AsyncGenerator[Event, None]:
    """Events until ``encoding`` is done. The last is Failed if it fails, or begins later than ``options`` allow."""
    beginning = asyncio.create_task(encoding.begun(options))
    async with aclosing(_while_waiting(beginning, QUEUED_AFTER_S)) as waits:
        async for event in waits:
            yield event
    if (error := beginning.exception()) is None:
        while not (await asyncio.wait({encoding.result}, timeout=SIGN_OF_LIFE_INTERVAL_S))[0]:
            yield Begun()
        error = encoding.result.exception()
    if error is not None:
        yield _failed(error)


def _failed(error: BaseException) -> Failed:
    """The event for ``error``, which is raised if the client cannot be told."""
    if not isinstance(error, Phi3ServeError):
        raise error
    return Failed(error)


def _constraint(model: RunningModel, request: GenerationRequest, prepared: EngineRequest) -> Constraint | None:
    """What the text of the answer must be, if ``request`` says it."""
    wanted = prepared.parameters.structured_output
    if wanted is None:
        return None
    if request.clean_up_tokenization_spaces:
        raise InvalidRequest(
            f"`clean_up_tokenization_spaces` changes the text of the answer, so that `{wanted.kind}` may not allow it; "
            "send false.",
            "clean_up_tokenization_spaces",
        )
    is_start = not model.tokenizer.before_answer(request.prompt, prepared.prompt_ids)
    return model.grammars.constraint(wanted, ends=prepared.parameters.eos_token_ids, is_start_of_text=is_start)


def _turn_defaults(model: RunningModel) -> GenerationParameters:
    """The checkpoint's defaults for answers to conversations; a generation config can lack what ends a turn."""
    ends = dict.fromkeys([*model.loaded.defaults.eos_token_ids(), *sorted(model.tokenizer.end_of_turn_ids)])
    return replace(model.loaded.defaults, eos_token_id=list(ends) or None)


def _with_tools(error: PromptTooLong, model: RunningModel, request: GenerationRequest) -> PromptTooLong:
    """``error``, which says how much of the prompt the tools are, if there are any."""
    if not isinstance(request.prompt, Conversation) or not request.prompt.tools_text:
        return error
    text = request.prompt.tools_text
    fewest = model.tokenizer.fewest_tokens(text, model.loaded.context_length)
    num_tokens = f"at least {fewest}" if fewest else len(model.tokenizer.encode_text(text))
    return PromptTooLong(f"{error.message} `tools` takes {num_tokens} tokens of the prompt.", error.param)


def _prefix_length(model: RunningModel, request: GenerationRequest) -> int:
    if not isinstance(request.prompt, RawPrompt) or not request.prompt.prefix:
        return 0
    return len(model.tokenizer.encode(RawPrompt(request.prompt.prefix)))


def queue_limits(limits: QueueLimitsConfig) -> QueueLimits:
    """``limits`` as the engine takes them."""
    return QueueLimits(limits.max_waiting_requests, limits.max_waiting_tokens)
