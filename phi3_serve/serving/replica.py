"""One variant on one device: text to ids, the engine, ids to text. Nothing here blocks the event loop."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from phi3_serve.config import LimitsConfig, LiveConfig
from phi3_serve.core import (
    Completion,
    Delta,
    Done,
    Engine,
    EngineRequest,
    Event,
    Failed,
    Finished,
    GeneratedSequence,
    GenerationRequest,
    GpuInfo,
    NewTokens,
    QueueLimits,
    RawPrompt,
    Usage,
)
from phi3_serve.errors import CheckpointError, EngineFailure, Phi3ServeError, RequestTimeout
from phi3_serve.observability.progress import told_to
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import check_prompt_ids, prepare
from phi3_serve.resolved_parameters import check_token_ids, resolve
from phi3_serve.serving.event_queue import EventQueue
from phi3_serve.serving.load_status import Note
from phi3_serve.text.detokenize import clean_up

if TYPE_CHECKING:
    from phi3_serve.engine.loader import LoadedModel
    from phi3_serve.text.tokenizer import Phi3Tokenizer

logger = logging.getLogger("phi3_serve")

# Streamed text leaves at once for the first token, then at most this often: each message through
# Ray costs about a millisecond.
SECONDS_BETWEEN_DELTAS = 0.05
SECONDS_OF_GRACE = 0.5


def end_process(reason: str) -> None:
    """End a replica that cannot answer any more, at once.

    Serve starts another as soon as it sees that, where it would wait for three failed health checks; meanwhile a
    replica that fails everything at once looks idle, and draws all requests. What this one had not begun to answer is
    asked of another.
    """
    logger.critical("this replica ends: %s", reason)
    os._exit(1)


class Replica:
    """Owns one model and one engine thread."""

    def __init__(
        self,
        *,
        name: str,
        source: str,
        revision: str | None,
        device: str,
        dtype: str,
        num_threads: int,
        stuck_after_s: float,
        limits: LimitsConfig,
        defaults: GenerationParameters,
        give_up: Callable[[str], None] = end_process,
    ) -> None:
        """Load the model. ``give_up`` is called when the engine cannot go on."""
        _log_through_serve()
        self._limits, self._defaults = limits, defaults
        self._live_defaults = defaults
        self._give_up = give_up
        note = Note(name)
        try:
            with told_to(note.write):
                self._loaded, self._tokenizer, self._engine = _load(
                    name, source, revision, device, dtype, num_threads, stuck_after_s, self._break_down
                )
            self._engine.queue = queue_limits(limits)
        except CheckpointError as error:  # Serve's own report of it is fifty lines long
            logger.error("%s cannot be served: %s", name, error.message)
            raise
        finally:
            note.take_down()

    def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Take over limits and defaults; requests in flight keep theirs. Serve calls it, at the start too."""
        live = LiveConfig.model_validate(user_config)
        self._engine.queue = queue_limits(live.over(self._limits))
        self._live_defaults = live.defaults.over(self._defaults)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        """The events of one request; the last is Done or Failed."""
        try:
            engine_request = await asyncio.to_thread(self._prepare, request)
            events = EventQueue()
            self._engine.submit(engine_request, events.put)
        except Phi3ServeError as error:
            yield Failed(error)
            return
        try:
            async for event in self._as_text(request, engine_request, events):
                yield event
        finally:  # also where the client went away
            self._engine.abort(engine_request.request_id)

    async def ping(self) -> None:
        """Nothing; asking for it wakes a variant that is scaled to zero."""

    async def host_info(self) -> GpuInfo:
        """The replica's GPU."""
        from phi3_serve.engine.device import gpu_info

        return await asyncio.to_thread(gpu_info)

    async def check_health(self) -> None:
        """End the replica if its engine cannot answer."""
        try:
            self._engine.check_health()
        except EngineFailure as error:
            self._give_up(error.message)
            raise

    async def load(self) -> Mapping[str, int]:
        """Requests that run and wait, and blocks of the cache in use."""
        return asdict(self._engine.load)

    def _break_down(self, error: Exception) -> None:
        self._give_up(f"{type(error).__name__}: {error}")

    def _prepare(self, request: GenerationRequest) -> EngineRequest:
        """Resolve the parameters, encode the prompt, and check both against the model."""
        parameters = resolve(request.parameters, self._live_defaults, request.api_defaults, self._loaded.defaults)
        check_token_ids(parameters, self._loaded.vocab_size)
        prompt_ids = self._tokenizer.encode(request.prompt)
        check_prompt_ids(prompt_ids, self._loaded.vocab_size)
        return prepare(
            request.request_id,
            prompt_ids,
            parameters,
            context_length=self._loaded.context_length,
            timeout_s=request.options.timeout_s,
            queue_timeout_s=request.options.queue_timeout_s,
            num_prefix_tokens=self._prefix_length(request),
            truncates_prompt=request.truncate_prompt,
            stream=request.stream,
        )

    def _prefix_length(self, request: GenerationRequest) -> int:
        if not isinstance(request.prompt, RawPrompt) or not request.prompt.prefix:
            return 0
        return len(self._tokenizer.encode(RawPrompt(request.prompt.prefix)))

    async def _as_text(
        self, request: GenerationRequest, engine_request: EngineRequest, events: EventQueue
    ) -> AsyncGenerator[Event, None]:
        stream = self._tokenizer.stream(clean_up=request.clean_up_tokenization_spaces)
        last_delta = 0.0
        while True:
            new_ids, last = await _drain(events, engine_request.deadline)
            text = stream.add(new_ids) + (stream.finish() if last is not None else "")
            if text:
                yield Delta(text)
                last_delta = time.monotonic()
            if isinstance(last, Failed):
                yield last
                return
            if isinstance(last, Finished):
                yield self._done(request, engine_request, last)
                return
            await events.rest(last_delta + SECONDS_BETWEEN_DELTAS - time.monotonic())

    def _done(self, request: GenerationRequest, engine_request: EngineRequest, finished: Finished) -> Done:
        completions = []
        for sequence in finished.sequences:
            text = self._tokenizer.decode(sequence.token_ids)
            shown = clean_up(text) if request.clean_up_tokenization_spaces else text
            completions.append(Completion(shown, sequence, self._tokenizer.pieces(_named_ids(sequence))))
        usage = Usage(
            prompt_tokens=len(engine_request.prompt_ids),
            completion_tokens=sum(len(s.token_ids) for s in finished.sequences),
        )
        return Done(tuple(completions), usage)


def _named_ids(sequence: GeneratedSequence) -> set[int]:
    """The token ids that the sequence's logprobs speak of."""
    if sequence.logprobs is None:
        return set()
    return {*sequence.token_ids, *(i for of_token in sequence.logprobs for i, _ in of_token.likeliest)}


async def _drain(events: EventQueue, deadline: float) -> tuple[list[int], Finished | Failed | None]:
    """Wait for an event, take what came with it: the new ids, and the last event if it is among them.

    An engine ends a late request itself; one that still waits behind others, or hangs, is given up here.
    """
    try:
        async with asyncio.timeout(deadline + SECONDS_OF_GRACE - time.monotonic()):
            taken = await events.take()
    except TimeoutError:
        return [], Failed(RequestTimeout("The request did not finish in time."))
    new_ids = [token_id for event in taken if isinstance(event, NewTokens) for token_id in event.token_ids]
    last = taken[-1]
    return new_ids, None if isinstance(last, NewTokens) else last


def queue_limits(limits: LimitsConfig) -> QueueLimits:
    """What of ``limits`` the engine keeps."""
    return QueueLimits(limits.max_waiting_requests, limits.max_waiting_tokens)


def _load(
    name: str,
    source: str,
    revision: str | None,
    device: str,
    dtype: str,
    num_threads: int,
    stuck_after_s: float,
    on_breakdown: Callable[[Exception], None],
) -> "tuple[LoadedModel, Phi3Tokenizer, Engine]":
    # Imported here: this module is read by the process that builds the application, which needs no torch.
    import torch
    import transformers

    from phi3_serve.engine.engine import Engine as BatchingEngine
    from phi3_serve.engine.loader import load
    from phi3_serve.engine.threads import in_temporary_thread
    from phi3_serve.text.tokenizer import Phi3Tokenizer

    def start() -> "tuple[LoadedModel, Engine]":
        loaded = load(name, source, revision, device=device, dtype=dtype)
        engine = BatchingEngine(loaded, stuck_after_s=stuck_after_s, on_breakdown=on_breakdown, releases_weights=True)
        return loaded, engine

    torch.set_num_threads(num_threads)
    # It warns of parameters that have no effect, at every request; ours are checked, and KAITO's defaults are such.
    transformers.logging.set_verbosity_error()
    loaded, engine = in_temporary_thread(start)
    return loaded, Phi3Tokenizer(loaded.tokenizer), engine


def _log_through_serve() -> None:
    """Send our log lines where Ray Serve sends its own: stderr and the replica's log file."""
    serve_logger = logging.getLogger("ray.serve")
    logger.handlers = list(serve_logger.handlers)
    logger.setLevel(serve_logger.level)
    logger.propagate = False
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one prompt at a time; threads would fight torch's
