"""What the tests of the engine share: how they ask it."""

import queue
import time
from typing import Any

from phi3_serve.core import EngineEvent, EngineRequest, Finished, GeneratedSequence, NewTokens
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loader import LoadedModel
from phi3_serve.parameters import GenerationParameters, lengths, resolve

PROMPT = (389, 512, 380, 619, 390)


def request(
    loaded: LoadedModel,
    name: str = "r",
    *,
    prompt: tuple[int, ...] = PROMPT,
    stream: bool = False,
    seconds: float = 120,
    **given: Any,
) -> EngineRequest:
    """A request as the replica makes it."""
    parameters = resolve(GenerationParameters(**given), loaded.defaults)
    total = lengths(parameters, prompt=len(prompt), prefix=0, context=loaded.context_length)
    return EngineRequest(
        request_id=name,
        prompt_ids=prompt,
        parameters=parameters,
        min_length=total.min_length,
        max_length=total.max_length,
        stream=stream,
        deadline=time.monotonic() + seconds,
    )


class Answer:
    """The events of one request, as they come."""

    def __init__(self, engine: Engine, asked: EngineRequest) -> None:
        self.events: queue.Queue[EngineEvent] = queue.Queue()
        engine.submit(asked, self.events.put)

    def all(self) -> list[EngineEvent]:
        """Wait for the last event."""
        seen = [self.events.get(timeout=120)]
        while isinstance(seen[-1], NewTokens):
            seen.append(self.events.get(timeout=120))
        return seen

    def last(self) -> EngineEvent:
        """The last event."""
        return self.all()[-1]

    def sequences(self) -> tuple[GeneratedSequence, ...]:
        """The answer of a request that succeeds."""
        event = self.last()
        assert isinstance(event, Finished), event
        return event.sequences

    def ids(self) -> list[tuple[int, ...]]:
        """The token ids of each sequence."""
        return [sequence.token_ids for sequence in self.sequences()]
