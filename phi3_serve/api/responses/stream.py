"""The events of a stream of ``/v1/responses``."""

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from phi3_serve.api import sse
from phi3_serve.api.new_text import new_texts
from phi3_serve.api.responses.answers import ResponseWriter, ran_out_of_tokens
from phi3_serve.api.responses.items import function_call, logprobs_of, message, message_id, part
from phi3_serve.api.responses.tools import Status
from phi3_serve.api.service import Events
from phi3_serve.api.tools.answer import AnswerReader, Arguments, Call, CallBegins, CallEnds, Piece, Words
from phi3_serve.core.event import Done
from phi3_serve.errors import Phi3ServeError

Json = dict[str, Any]


class ResponseStream:
    """Writes one response as events. The items of its output come one after another."""

    def __init__(self, writer: ResponseWriter) -> None:
        self._writer = writer
        self._reader = AnswerReader(writer.calls)
        self._num_events = 0
        self._output: list[Json] = []  # the items that are finished
        self._text: str | None = None  # of the message that is open
        self._logprobs: list[Json] = []  # of its tokens
        self._new_logprobs: list[Json] = []  # that no event has shown yet
        self._call: Call | None = None  # that is open

    async def events(self, events: Events) -> AsyncGenerator[bytes, None]:
        """The events of a stream. None is sent before the first text, so that an earlier error has its own status."""
        async with aclosing(new_texts(events)) as additions:
            async for new in additions:
                if not self._num_events:
                    for opening in self._start():
                        yield opening
                self._new_logprobs += logprobs_of(new.tokens)
                for piece in self._reader.add(new.text):
                    for of_piece in self._piece(piece):
                        yield of_piece
                if isinstance(new.event, Done):
                    for closing in self._closing(new.event):
                        yield closing

    def failed(self, error: Phi3ServeError) -> bytes:
        """The events that end a stream with ``error``."""
        start = () if self._num_events else self._start()
        return b"".join((*start, self._event("response.failed", response=self._writer.failed(error))))

    def _start(self) -> Iterable[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._writer.response("in_progress"))

    def _piece(self, piece: Piece) -> Iterator[bytes]:
        match piece:
            case Words(text):
                if self._text is None:
                    yield from self._open_message()
                self._text = (self._text or "") + text
                logprobs, self._new_logprobs = self._new_logprobs, []
                self._logprobs += logprobs
                yield self._of_part("response.output_text.delta", delta=text, logprobs=logprobs)
            case CallBegins(_, call_id, name):
                self._call = Call(call_id, name)
                yield self._of_item("response.output_item.added", item=function_call(self._call, "in_progress"))
            case Arguments(_, text) if self._call is not None:
                self._call.arguments += text
                yield self._of_call("response.function_call_arguments.delta", delta=text)
            case CallEnds():
                yield from self._close_call("completed")

    def _closing(self, done: Done) -> Iterator[bytes]:
        is_cut = ran_out_of_tokens(done)
        status: Status = "incomplete" if is_cut else "completed"
        for piece in self._reader.finish(is_whole=not is_cut):
            yield from self._piece(piece)
        if self._call is not None:
            yield from self._close_call("incomplete")
        if not self._output and self._text is None:
            yield from self._open_message()
        if self._text is not None:
            yield from self._close_message(status)
        yield self._event(f"response.{status}", response=self._writer.ended(done, self._output))

    def _open_message(self) -> Iterator[bytes]:
        self._text = ""
        yield self._of_item("response.output_item.added", item=message(self._message_id, "in_progress", []))
        yield self._of_part("response.content_part.added", part=part(""))

    def _close_message(self, status: Status) -> Iterator[bytes]:
        whole = part(self._text or "", [*self._logprobs, *self._new_logprobs])
        yield self._of_part("response.output_text.done", text=whole["text"], logprobs=whole["logprobs"])
        yield self._of_part("response.content_part.done", part=whole)
        yield from self._close_item(message(self._message_id, status, [whole]))
        self._text = None

    def _close_call(self, status: Status) -> Iterator[bytes]:
        call, self._call = self._call, None
        if call is None:
            return
        item = function_call(call, status)
        yield self._of_item(
            "response.function_call_arguments.done", item_id=item["id"], name=call.name, arguments=call.arguments
        )
        yield from self._close_item(item)

    def _close_item(self, item: Json) -> Iterator[bytes]:
        yield self._of_item("response.output_item.done", item=item)
        self._output.append(item)

    @property
    def _message_id(self) -> str:
        return message_id(self._writer.id)

    def _of_part(self, kind: str, **content: Any) -> bytes:
        return self._of_item(kind, item_id=self._message_id, content_index=0, **content)

    def _of_call(self, kind: str, **content: Any) -> bytes:
        return self._of_item(kind, item_id=f"fc_{self._call.id}" if self._call else "", **content)

    def _of_item(self, kind: str, **content: Any) -> bytes:
        return self._event(kind, output_index=len(self._output), **content)

    def _event(self, kind: str, **content: Any) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return sse.event({"type": kind, "sequence_number": number, **content}, name=kind)
