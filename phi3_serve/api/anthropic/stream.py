"""The events of Anthropic's streams."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from phi3_serve.api import sse
from phi3_serve.api.anthropic.answers import (
    NOT_ENDED,
    MessageWriter,
    ended,
    ran_out_of_tokens,
    text_block,
    tool_use_block,
    usage_json,
)
from phi3_serve.api.anthropic.errors import ANTHROPIC
from phi3_serve.api.new_text import new_texts
from phi3_serve.api.service import Events
from phi3_serve.api.streams import StreamForm
from phi3_serve.api.tools.answer import AnswerReader, Arguments, Call, CallBegins, CallEnds, Piece, Words
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.usage import Usage
from phi3_serve.errors import Phi3ServeError

Json = dict[str, Any]


def _event(kind: str, **content: Any) -> bytes:
    return sse.event({"type": kind, **content}, name=kind)


_PING = _event("ping")
FORM = StreamForm(sse.MEDIA_TYPE, keep_alive=_PING)


def error_event(error: Phi3ServeError) -> bytes:
    """The event that ends a stream with ``error``."""
    return sse.event(ANTHROPIC.body(error), name="error")


class MessageStream:
    """Writes one message as events. Its blocks come one after another."""

    def __init__(self, writer: MessageWriter) -> None:
        self._writer = writer
        self._reader = AnswerReader(writer.calls)
        self._num_blocks = 0  # that have begun
        self._is_open = False  # whether the last one has not ended

    async def events(self, events: Events) -> AsyncGenerator[bytes, None]:
        """The events. The first text brings the number of tokens of the prompt, which the start has."""
        has_begun = False
        async with aclosing(new_texts(events)) as additions:
            async for new in additions:
                if not has_begun:
                    yield self._start(new.event)
                    has_begun = True
                for piece in self._reader.add(new.text):
                    for of_piece in self._piece(piece):
                        yield of_piece
                if isinstance(new.event, Done):
                    for closing in self._closing(new.event):
                        yield closing

    def _start(self, first: Delta | Done) -> bytes:
        assert first.usage is not None  # noqa: S101 - the request asks for it
        usage = Usage(first.usage.prompt_tokens, 0)
        return _event("message_start", message={**self._writer.message(usage, NOT_ENDED), "content": []})

    def _piece(self, piece: Piece) -> Iterator[bytes]:
        match piece:
            case Words(text):
                if not self._is_open:
                    yield from self._begin(text_block(""))
                yield self._delta({"type": "text_delta", "text": text})
            case CallBegins(_, call_id, name):
                yield from self._begin(tool_use_block(Call(call_id, name)))
            case Arguments(_, text):
                yield self._delta({"type": "input_json_delta", "partial_json": text})
            case CallEnds():
                yield from self._end()

    def _closing(self, done: Done) -> Iterator[bytes]:
        completion = done.completions[0]
        for piece in self._reader.finish(is_whole=not ran_out_of_tokens(completion)):
            yield from self._piece(piece)
        if not self._num_blocks:
            yield from self._begin(text_block(""))
        yield from self._end()
        usage = usage_json(done.usage)
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        delta = ended(completion, has_calls=self._reader.num_calls > 0)
        yield _event("message_delta", delta=delta, usage=usage, **warnings)
        yield _event("message_stop")

    def _begin(self, block: Json) -> Iterator[bytes]:
        self._num_blocks, self._is_open = self._num_blocks + 1, True
        yield _event("content_block_start", index=self._num_blocks - 1, content_block=block)
        if self._num_blocks == 1:
            yield _PING

    def _delta(self, delta: Json) -> bytes:
        return _event("content_block_delta", index=self._num_blocks - 1, delta=delta)

    def _end(self) -> Iterator[bytes]:
        if self._is_open:
            self._is_open = False
            yield _event("content_block_stop", index=self._num_blocks - 1)
