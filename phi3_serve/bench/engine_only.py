"""The engine without a server, streaming: the reference for the cost of HTTP, Ray and text."""

import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phi3_serve.core.engine_event import EngineEvent, NewTokens
from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.prompt import Conversation, Message
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loader import load
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve
from phi3_serve.text.tokenizer import Phi3Tokenizer

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Stream:
    """The times of one answer."""

    first_token_s: float
    seconds: float
    num_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Of this answer, from the request to the end."""
        return self.num_tokens / self.seconds


class EngineAlone:
    """The engine over a checkpoint on the CPU."""

    def __init__(self, directory: Path) -> None:
        self._loaded = load("alone", str(directory), None, device="cpu", dtype="float32")
        self._engine = Engine(self._loaded, queue=QueueLimits(requests=1 << 20, tokens=1 << 40), releases_weights=True)
        self._prompt: Sequence[int] = ()
        self._asked = 0

    def set_question(self, question: str) -> None:
        """Encode the question of every stream, as the replica does before it calls the engine."""
        tokenizer = Phi3Tokenizer(self._loaded.tokenizer)
        self._prompt = tokenizer.encode(Conversation((Message("user", question),)))

    def streams(self, number: int, new_tokens: int) -> tuple[float, list[Stream]]:
        """Run ``at_once`` greedy answers: seconds for all, and the times of each."""
        events: queue.Queue[tuple[int, float, EngineEvent]] = queue.Queue()
        began = time.perf_counter()
        for index in range(number):
            self._engine.submit(
                self._request(new_tokens),
                lambda event, index=index: events.put((index, time.perf_counter(), event)),  # type: ignore[misc]
            )
        first: dict[int, float] = {}
        tokens = [0] * number
        done: list[Stream] = []
        while len(done) < number:
            index, now, event = events.get(timeout=_TIMEOUT_S)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, NewTokens):
                first.setdefault(index, now - began)
                tokens[index] += len(event.token_ids)
            else:
                done.append(Stream(first.get(index, now - began), now - began, tokens[index]))
        return time.perf_counter() - began, done

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.close()

    def _request(self, new_tokens: int) -> EngineRequest:
        given = GenerationParameters(do_sample=False, max_new_tokens=new_tokens)
        self._asked += 1
        return prepare(
            f"alone-{self._asked}",
            self._prompt,
            resolve(given, self._loaded.defaults),
            context_length=self._loaded.context_length,
            timeout_s=_TIMEOUT_S,
            stream=True,
        )
