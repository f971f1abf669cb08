"""OpenAI's streams: the events of one or more requests become chunks of one stream."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from phi3_serve.api import sse
from phi3_serve.api.openai.answers import Json, ResponseBuilder, usage_of
from phi3_serve.api.openai.errors import OPENAI
from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.core import Completion, Delta, Done
from phi3_serve.errors import EngineFailure, Phi3ServeError

NumberedEvent = tuple[int, Delta | Done]  # the number of the request, and its event


async def merged(sources: Sequence[Events]) -> AsyncGenerator[NumberedEvent, None]:
    """The events of all requests in the order of their arrival."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for event in source:
                yield 0, event
        return
    queue: asyncio.Queue[NumberedEvent | Exception] = asyncio.Queue(maxsize=len(sources))

    async def forward(number: int, source: Events) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    await queue.put((number, event))
                    if isinstance(event, Done):
                        return
            raise EngineFailure(INCOMPLETE_ANSWER)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(forward(number, source)) for number, source in enumerate(sources)]
    try:
        num_running = len(tasks)
        while num_running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            num_running -= isinstance(item[1], Done)
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def completion_events(
    events: AsyncGenerator[NumberedEvent, None], builder: ResponseBuilder, *, n: int, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The stream as server-sent events. ``n``: answers to each prompt; ``with_usage``: end with the usage."""
    choices = _Choices(builder)
    done: dict[int, Done] = {}
    async with aclosing(events):
        async for number, content in events:
            if isinstance(content, Done):
                done[number] = content
            for part in choices.parts(number, content):
                warnings = content.warnings if isinstance(content, Done) and part["finish_reason"] else ()
                yield sse.event(builder.chunk(part, with_usage=with_usage, warnings=warnings))
    if not done:
        raise EngineFailure(INCOMPLETE_ANSWER)
    if with_usage:
        in_order = [done[number] for number in sorted(done)]
        yield sse.event(builder.usage_chunk(usage_of(in_order, n)))
    yield sse.END


def error_event(error: Phi3ServeError) -> bytes:
    """The event that ends a stream with ``error``."""
    return sse.event(OPENAI.body(error))


class _Choices:
    """All choices of a stream. A request has one choice, or with beam search several that follow each other."""

    def __init__(self, builder: ResponseBuilder) -> None:
        self._builder = builder
        self._choices: dict[int, _Choice] = {}

    def parts(self, number: int, content: Delta | Done) -> list[Json]:
        """The parts of chunks that an event of request ``number`` adds."""
        if isinstance(content, Delta):
            return self._choice(number).add(content.text)
        first = number * len(content.completions)
        return [part for at, c in enumerate(content.completions) for part in self._choice(first + at).finish(c)]

    def _choice(self, index: int) -> "_Choice":
        return self._choices.setdefault(index, _Choice(index, self._builder))


class _Choice:
    """One choice of a stream."""

    def __init__(self, index: int, builder: ResponseBuilder) -> None:
        self._index = index
        self._builder = builder
        self._is_open = False

    def finish(self, completion: Completion) -> list[Json]:
        """The last parts. They hold the whole text if there was no delta, as with beam search."""
        parts = [] if self._is_open else self.add(completion.text)
        return [*parts, self._builder.final_part(self._index, completion)]

    def add(self, text: str) -> list[Json]:
        """The parts that the next text of the answer adds."""
        opening = None if self._is_open else self._builder.opening_part(self._index)
        self._is_open = True
        return [*([opening] if opening else []), *([self._builder.text_part(self._index, text)] if text else [])]
