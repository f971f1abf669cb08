"""ollama's answers: plain, and as lines of JSON."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from phi3_serve.api.new_text import new_texts
from phi3_serve.api.ollama.errors import OLLAMA
from phi3_serve.api.service import Events
from phi3_serve.api.streams import StreamForm
from phi3_serve.api.tools.answer import AnswerReader, Arguments, Call, CallBegins, CallEnds, Piece, Words, read
from phi3_serve.core.completion import TextToken
from phi3_serve.core.event import Done
from phi3_serve.core.usage import Timings
from phi3_serve.errors import Phi3ServeError
from phi3_serve.tool_calls import ToolCalls

# A space before the next line of JSON means nothing to any parser. ollama's Python client fails on an empty line.
FORM = StreamForm("application/x-ndjson", keep_alive=b" ")

Json = dict[str, Any]
_MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot express
_NO_TIME = Timings(queue_s=0.0, prompt_s=0.0, answer_s=0.0)


def now() -> str:
    """The time as ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass(kw_only=True)
class AnswerWriter(ABC):
    """Writes one answer, plain or as a stream."""

    model: str  # as the client calls it
    calls: ToolCalls | None = None  # that the answer may have
    num_calls: int = 0  # that are written
    began: float = field(default_factory=time.monotonic)

    def part(self, text: str, calls: Sequence[Call] = (), tokens: Sequence[TextToken] = ()) -> Json:
        """The next piece of a stream."""
        return {**self._head(text, calls), **self._logprobs(tokens), "done": False}

    def whole(self, done: Done) -> Json:
        """The plain answer."""
        answer = read(done.completions[0].text, self.calls, is_whole=not ran_out_of_tokens(done))
        calls = [call for call in answer.calls if call.is_complete]
        return {**self._end(done, answer.text, calls), **self._logprobs(done.completions[0].tokens)}

    def end(self, done: Done, tokens: Sequence[TextToken] = ()) -> Json:
        """The end of a stream, and the ``tokens`` that are left."""
        return {**self._end(done, ""), **self._logprobs(tokens)}

    def started(self) -> Json:
        """The answer to a request that only starts the model."""
        return {**self._head(""), "done_reason": "load", "done": True}

    def _end(self, done: Done, text: str, calls: Sequence[Call] = ()) -> Json:
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        reason = done.completions[0].sequence.finish_reason
        return {**self._head(text, calls), "done_reason": reason, "done": True, **self._statistics(done), **warnings}

    def _statistics(self, done: Done) -> Json:
        timings = done.timings or _NO_TIME
        total = _nanoseconds(time.monotonic() - self.began)
        prompt, answer = _nanoseconds(timings.prompt_s), _nanoseconds(timings.answer_s)
        return {
            "total_duration": total,
            "load_duration": max(0, total - prompt - answer),
            "prompt_eval_count": done.usage.prompt_tokens,
            "prompt_eval_duration": prompt,
            "eval_count": done.usage.completion_tokens,
            "eval_duration": answer,
        }

    @staticmethod
    def _logprobs(tokens: Iterable[TextToken]) -> Json:
        """The log-probabilities of those ``tokens`` that are in the text, if they were asked for."""
        listed = [_scored(token) for token in tokens if token.in_text and token.logprob is not None]
        return {"logprobs": listed} if listed else {}

    def _head(self, text: str, calls: Sequence[Call] = ()) -> Json:
        return {"model": self.model, "created_at": now(), **self._content(text, calls)}

    @abstractmethod
    def _content(self, text: str, calls: Sequence[Call]) -> Json:
        """The field that has ``text`` and ``calls``."""


class ChatWriter(AnswerWriter):
    """Writes the answers of ``/api/chat``."""

    def _content(self, text: str, calls: Sequence[Call]) -> Json:
        of_calls = {"tool_calls": [_call(n, call) for n, call in enumerate(calls, self.num_calls)]} if calls else {}
        self.num_calls += len(calls)
        return {"message": {"role": "assistant", "content": text, **of_calls}}


class GenerateWriter(AnswerWriter):
    """Writes the answers of ``/api/generate``, which have no calls."""

    def _content(self, text: str, calls: Sequence[Call]) -> Json:
        return {"response": text}


async def lines(events: Events, writer: AnswerWriter) -> AsyncGenerator[bytes, None]:
    """The stream: pieces of the text, or whole calls, then the statistics."""
    reader = CallReader(writer.calls)
    async with aclosing(new_texts(events)) as additions:
        async for new in additions:
            event, tokens = new.event, new.tokens
            parts = list(reader.add(new.text))
            if not parts and tokens and not isinstance(event, Done):  # the text is held back
                parts = [("", ())]
            for part in parts:
                yield _line(writer.part(*part, tokens))
                tokens = ()
            if isinstance(event, Done):
                for part in reader.finish(is_whole=not ran_out_of_tokens(event)):
                    yield _line(writer.part(*part))
                yield _line(writer.end(event, tokens))


class CallReader:
    """Reads one answer of a stream as texts and whole calls. A call that is not complete is left out."""

    def __init__(self, calls: ToolCalls | None) -> None:
        self._reader = AnswerReader(calls)
        self._call: Call | None = None

    def add(self, text: str) -> Iterator[tuple[str, Sequence[Call]]]:
        """The texts and calls that ``text`` adds."""
        return self._parts(self._reader.add(text))

    def finish(self, *, is_whole: bool) -> Iterator[tuple[str, Sequence[Call]]]:
        """The texts and calls that the end adds. ``is_whole``: see ``AnswerReader``."""
        return self._parts(self._reader.finish(is_whole=is_whole))

    def _parts(self, pieces: Sequence[Piece]) -> Iterator[tuple[str, Sequence[Call]]]:
        for piece in pieces:
            match piece:
                case Words(text):
                    yield text, ()
                case CallBegins(_, call_id, name):
                    self._call = Call(call_id, name)
                case Arguments(_, text) if self._call is not None:
                    self._call.arguments += text
                case CallEnds() if self._call is not None:
                    yield "", [replace(self._call, is_complete=True)]


def ran_out_of_tokens(done: Done) -> bool:
    """Whether the answer has reached its length."""
    return done.completions[0].sequence.finish_reason == "length"


def _scored(token: TextToken) -> Json:
    likeliest = [_known(one.piece, one.logprob) for one in token.likeliest]
    return {**_known(token.piece, token.logprob), **({"top_logprobs": likeliest} if likeliest else {})}


def _known(piece: bytes, logprob: float | None) -> Json:
    finite = None if logprob is None else max(logprob, _MIN_LOGPROB)
    return {"token": piece.decode(errors="replace"), "logprob": finite, "bytes": list(piece)}


def _call(number: int, call: Call) -> Json:
    function = {"index": number, "name": call.name, "arguments": call.input}
    return {"id": f"call_{call.id}", "function": function}


async def only(answer: Json) -> AsyncGenerator[bytes, None]:
    """A stream of one line."""
    yield _line(answer)


def error_line(error: Phi3ServeError) -> bytes:
    """The line that ends a stream with ``error``."""
    return _line(OLLAMA.body(error))


def _line(content: Json) -> bytes:
    return f"{json.dumps(content)}\n".encode()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
