"""Engine events of one request, token ids, as events of the answer, text."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from phi3_serve.core import (
    Begun,
    Completion,
    Delta,
    Done,
    EngineEvent,
    EngineRequest,
    Event,
    Failed,
    Finished,
    GeneratedSequence,
    GenerationRequest,
    NewTokens,
    Started,
    Usage,
)
from phi3_serve.errors import RequestTimeout
from phi3_serve.prepare import warnings
from phi3_serve.serving.event_queue import EventQueue

if TYPE_CHECKING:
    from phi3_serve.text.tokenizer import Phi3Tokenizer

# A stream sends its first text at once, and later text at most this often: each message through Ray costs about a
# millisecond.
MIN_DELTA_INTERVAL_S = 0.05
# The engine itself ends a late request. If it does not within this time after the deadline, the replica does.
DEADLINE_GRACE_S = 0.5


async def text_events(
    request: GenerationRequest, engine_request: EngineRequest, events: EventQueue, tokenizer: "Phi3Tokenizer"
) -> AsyncGenerator[Event, None]:
    """The text of ``events`` as it comes, and the start of a queued request; the last event is Done or Failed."""
    before = tokenizer.before_answer(request.prompt, engine_request.prompt_ids)
    parameters, clean_up = engine_request.parameters, request.clean_up_tokenization_spaces
    stream = tokenizer.stream(before, parameters, clean_up=clean_up)
    last_delta = 0.0
    while True:
        received = await _receive(events, engine_request.deadline)
        if isinstance(received[0], Started):
            yield Begun()
        last = received[-1] if isinstance(received[-1], Finished | Failed) else None
        text = stream.add(_new_ids(received)) + (stream.finish() if last is not None else "")
        if text:
            yield Delta(text)
            last_delta = time.monotonic()
        if isinstance(last, Failed):
            yield last
            return
        if isinstance(last, Finished):
            yield _done(request, engine_request, last, tokenizer)
            return
        await events.wait_for_last(last_delta + MIN_DELTA_INTERVAL_S - time.monotonic())


async def _receive(events: EventQueue, deadline: float) -> list[EngineEvent]:
    """Wait for events, which may be Failed because ``deadline`` has passed."""
    try:
        async with asyncio.timeout(deadline + DEADLINE_GRACE_S - time.monotonic()):
            return await events.get_all()
    except TimeoutError:  # the request waits behind others, or the engine hangs
        return [Failed(RequestTimeout("The request did not finish in time."))]


def _new_ids(received: Sequence[EngineEvent]) -> list[int]:
    return [token_id for event in received if isinstance(event, NewTokens) for token_id in event.token_ids]


def _done(
    request: GenerationRequest, engine_request: EngineRequest, finished: Finished, tokenizer: "Phi3Tokenizer"
) -> Done:
    before = tokenizer.before_answer(request.prompt, engine_request.prompt_ids)
    parameters = engine_request.parameters
    traceless_ids = tokenizer.traceless_ids(parameters)
    completions = []
    for sequence in finished.sequences:
        stream = tokenizer.stream(before, parameters, clean_up=request.clean_up_tokenization_spaces)
        text = stream.add(sequence.token_ids) + stream.finish()
        completions.append(
            Completion(
                text,
                sequence,
                tokenizer.pieces(ids := _ids_with_logprobs(sequence)),
                control_ids=traceless_ids & ids,
                drops_first_space=not before,
            )
        )
    usage = Usage(
        prompt_tokens=len(engine_request.prompt_ids),
        completion_tokens=sum(len(s.token_ids) for s in finished.sequences),
    )
    return Done(tuple(completions), usage, warnings(engine_request))


def _ids_with_logprobs(sequence: GeneratedSequence) -> set[int]:
    """The token ids that ``sequence.logprobs`` names."""
    if sequence.logprobs is None:
        return set()
    return {*sequence.token_ids, *(i for of_token in sequence.logprobs for i, _ in of_token.likeliest)}
