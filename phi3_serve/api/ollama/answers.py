"""ollama's answers: plain, and as lines of JSON."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from phi3_serve.api.ollama.errors import OLLAMA
from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.api.streams import StreamForm
from phi3_serve.core import Delta, Done, Timings
from phi3_serve.errors import EngineFailure, Phi3ServeError

# A space before the next line of JSON means nothing to any parser. ollama's Python client fails on an empty line.
FORM = StreamForm("application/x-ndjson", keep_alive=b" ")

Json = dict[str, Any]
_NO_TIME = Timings(queue_s=0.0, prompt_s=0.0, answer_s=0.0)


def now() -> str:
    """The time as ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@dataclass(kw_only=True)
class AnswerWriter(ABC):
    """Writes one answer, plain or as a stream."""

    model: str  # as the client calls it
    began: float = field(default_factory=time.monotonic)

    def part(self, text: str) -> Json:
        """The next piece of a stream."""
        return {**self._head(text), "done": False}

    def whole(self, done: Done) -> Json:
        """The plain answer."""
        return self._end(done, done.completions[0].text)

    def end(self, done: Done) -> Json:
        """The end of a stream."""
        return self._end(done, "")

    def started(self) -> Json:
        """The answer to a request that only starts the model."""
        return {**self._head(""), "done_reason": "load", "done": True}

    def _end(self, done: Done, text: str) -> Json:
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        reason = done.completions[0].sequence.finish_reason
        return {**self._head(text), "done_reason": reason, "done": True, **self._statistics(done), **warnings}

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

    def _head(self, text: str) -> Json:
        return {"model": self.model, "created_at": now(), **self._content(text)}

    @abstractmethod
    def _content(self, text: str) -> Json:
        """The field that has ``text``."""


class ChatWriter(AnswerWriter):
    """Writes the answers of ``/api/chat``."""

    def _content(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text}}


class GenerateWriter(AnswerWriter):
    """Writes the answers of ``/api/generate``."""

    def _content(self, text: str) -> Json:
        return {"response": text}


async def lines(events: Events, writer: AnswerWriter) -> AsyncGenerator[bytes, None]:
    """The stream: pieces of the text, then the statistics."""
    has_text = False
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Delta):
                has_text = True
                yield _line(writer.part(event.text))
                continue
            if not has_text and (text := event.completions[0].text):  # beams give no deltas
                yield _line(writer.part(text))
            yield _line(writer.end(event))
            return
    raise EngineFailure(INCOMPLETE_ANSWER)


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
