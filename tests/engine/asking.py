"""What the tests of the engine share: how they ask it."""

import queue
from typing import Any

from phi3_serve.core.engine_event import EngineEvent, Finished, NewTokens, ScoredPrompt
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve

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
    return prepare(
        name,
        prompt,
        resolve(GenerationParameters(**given), loaded.defaults),
        context_length=loaded.context_length,
        timeout_s=seconds,
        stream=stream,
    )


class Answer:
    """The events of one request, as they come."""

    def __init__(self, engine: Engine, asked: EngineRequest) -> None:
        self.events: queue.Queue[EngineEvent] = queue.Queue()
        engine.submit(asked, self.events.put)

    def all(self) -> list[EngineEvent]:
        """Wait for the last event."""
        seen = [self.events.get(timeout=120)]
        while isinstance(seen[-1], NewTokens | ScoredPrompt):
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
