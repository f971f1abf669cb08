"""OpenAI's streams: the events of one or more requests become chunks of one stream."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from phi3_serve.api import sse
from phi3_serve.api.openai.response_builder import Json, ResponseBuilder
from phi3_serve.api.openai.shown import StreamedUsage
from phi3_serve.api.openai.usage import usage_json, usage_of
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.api.tools.answer import Piece
from phi3_serve.core.completion import Completion, PromptText, TextToken
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generated_sequence import FinishReason
from phi3_serve.core.usage import Usage
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
    events: AsyncGenerator[NumberedEvent, None], builder: ResponseBuilder, *, n: int, usage: StreamedUsage
) -> AsyncGenerator[bytes, None]:
    """The stream as server-sent events. ``n``: answers to each prompt."""
    choices = _Choices(builder, usage, n)
    done: dict[int, Done] = {}
    async with aclosing(events):
        async for number, content in events:
            if isinstance(content, Done):
                done[number] = content
            for chunk in choices.chunks(number, content):
                yield sse.event(chunk)
    if not done:
        raise EngineFailure(INCOMPLETE_ANSWER)
    if usage != "none":
        in_order = [done[number] for number in sorted(done)]
        yield sse.event(builder.usage_chunk(usage_of(in_order, n, has_answer=builder.shown.answer)))
    yield sse.END


def error_event(error: Phi3ServeError) -> bytes:
    """The event that ends a stream with ``error``."""
    return sse.event(OPENAI.body(error))


class _Choices:
    """All choices of a stream. A request has one choice, or with beam search several that follow each other."""

    def __init__(self, builder: ResponseBuilder, usage: StreamedUsage, n: int) -> None:
        self._builder = builder
        self._usage = usage
        self._n = n
        self._choices: dict[int, _Choice] = {}

    def chunks(self, number: int, content: Delta | Done) -> Iterator[Json]:
        """The chunks that an event of request ``number`` adds."""
        if self._builder.opens_together and not self._choices:
            for index in range(self._n):
                for part, num_tokens in self._choice(index).open(content.prompt):
                    yield self._builder.chunk(part, self._usage_field(content.usage, num_tokens))
        if isinstance(content, Delta):
            for part, num_tokens in self._choice(number).add(content):
                yield self._builder.chunk(part, self._usage_field(content.usage, num_tokens))
            return
        warnings = [*self._builder.warnings, *content.warnings]
        for index, completion in enumerate(content.completions, number * len(content.completions)):
            for part, num_tokens in self._choice(index).finish(completion, content.prompt):
                usage = self._usage_field(content.usage, num_tokens)
                yield self._builder.chunk(part, usage, warnings if part["finish_reason"] else ())

    def _usage_field(self, usage: Usage | None, num_tokens: int) -> Json:
        """The field of a chunk up to which a choice has ``num_tokens``."""
        if self._usage == "none":
            return {}
        if self._usage == "at_end" or usage is None:
            return {"usage": None}
        return {"usage": usage_json(replace(usage, completion_tokens=num_tokens))}

    def _choice(self, index: int) -> "_Choice":
        return self._choices.setdefault(index, _Choice(index, self._builder))


Parts = Iterator[tuple[Json, int]]  # each part with the number of tokens up to it


class _Choice:
    """One choice of a stream."""

    def __init__(self, index: int, builder: ResponseBuilder) -> None:
        self._index = index
        self._builder = builder
        self._reader = builder.reader()
        self._is_open = False
        self._has_delta = False
        self._prompt: PromptText | None = None
        self._of_first_part: Json = {}
        self._num_shown = 0  # tokens that parts have brought

    def add(self, delta: Delta) -> Parts:
        """The parts that the next text of the answer adds."""
        yield from self.open(delta.prompt)
        self._has_delta = True
        self._num_shown += len(delta.tokens)
        yield from self._text(delta.text, delta.tokens, 0 if delta.usage is None else delta.usage.completion_tokens)

    def finish(self, completion: Completion, prompt: PromptText | None) -> Parts:
        """The last parts. They hold the whole text if there was no delta, as with beam search."""
        sequence, shown, rest = completion.sequence, self._builder.shown, completion.tokens[self._num_shown :]
        num_tokens = len(sequence.token_ids) if shown.answer else 0
        yield from self.open(prompt)
        if not self._has_delta:
            yield from self._text(completion.text, rest, num_tokens)
            rest = ()
        yield from self._pieces(self._reader.finish(is_whole=sequence.finish_reason != "length"), (), num_tokens)
        reason: FinishReason = sequence.finish_reason if shown.answer else "length"
        part = self._builder.last_part(
            self._index, reason, rest if shown.answer else (), self._prompt, has_calls=self._reader.num_calls > 0
        )
        yield self._first(part), num_tokens

    def open(self, prompt: PromptText | None) -> Parts:
        """The parts before the answer, once."""
        if self._is_open:
            return
        self._is_open, self._prompt, self._of_first_part = True, prompt, self._builder.of_prompt(prompt)
        for part in self._builder.opening_parts(self._index, prompt):
            yield self._first(part), 0

    def _text(self, text: str, tokens: Sequence[TextToken], num_tokens: int) -> Parts:
        yield from self._pieces(self._reader.add(text), tokens, num_tokens)

    def _pieces(self, pieces: Sequence[Piece], tokens: Sequence[TextToken], num_tokens: int) -> Parts:
        shown = self._builder.shown
        has_tokens = bool(self._builder.listed(tokens) or (tokens and shown.token_ids))
        if shown.answer and (pieces or has_tokens):
            for part in self._builder.parts(self._index, pieces, tokens, self._prompt):
                yield self._first(part), num_tokens

    def _first(self, part: Json) -> Json:
        """``part``, with the fields of the prompt if it is the first one of the choice."""
        fields, self._of_first_part = self._of_first_part, {}
        return {**part, **fields}
