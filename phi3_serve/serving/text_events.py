"""Engine events of one request, token ids, as events of the answer, text."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from phi3_serve.core.engine_event import EngineEvent, Finished, Started
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import SIGN_OF_LIFE_INTERVAL_S, Begun, Event, Failed, Queued
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.errors import RequestTimeout
from phi3_serve.serving.answer_text import AnswerText
from phi3_serve.serving.event_queue import EventQueue

if TYPE_CHECKING:
    from phi3_serve.text.tokenizer import Phi3Tokenizer

# A stream sends its first text at once, and later text at most this often: each message to the ingress costs about a
# millisecond.
MIN_DELTA_INTERVAL_S = 0.05
# The engine itself ends a late request. If it does not within this time after the deadline, the replica does.
DEADLINE_GRACE_S = 0.5


async def text_events(
    request: GenerationRequest,
    engine_request: EngineRequest,
    events: EventQueue,
    tokenizer: "Phi3Tokenizer",
    *,
    is_queued: bool,
) -> AsyncGenerator[Event, None]:
    """The text of ``events`` as it comes; the last event is Done or Failed.

    ``is_queued``: the request has not begun. Its start is then an event. Silence is filled with the request's state.
    """
    answer = AnswerText(request, engine_request, tokenizer)
    last_delta = 0.0
    while True:
        received = await _receive(events, engine_request.deadline)
        if not received:
            yield Queued() if is_queued else Begun()
            continue
        if isinstance(received[0], Started):
            is_queued = False
            yield Begun()
        last = received[-1] if isinstance(received[-1], Finished | Failed) else None
        if (delta := await answer.add(received, is_last=last is not None)) is not None:
            yield delta
            last_delta = time.monotonic()
        if isinstance(last, Failed):
            yield last
            return
        if isinstance(last, Finished):
            yield await answer.done(last)
            return
        await events.wait_for_last(last_delta + MIN_DELTA_INTERVAL_S - time.monotonic())


async def _receive(events: EventQueue, deadline: float) -> list[EngineEvent]:
    """Wait for events, which may be Failed because ``deadline`` has passed. None come in a long silence."""
    left_s = deadline + DEADLINE_GRACE_S - time.monotonic()
    try:
        async with asyncio.timeout(min(left_s, SIGN_OF_LIFE_INTERVAL_S)):
            return await events.get_all()
    except TimeoutError:
        if left_s > SIGN_OF_LIFE_INTERVAL_S:
            return []
        # the request waits behind others, or the engine hangs
        return [Failed(RequestTimeout("The request did not finish in time."))]
