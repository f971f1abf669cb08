"""Anthropic's answers: plain, and as the events of a stream."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from phi3_serve.api import sse
from phi3_serve.api.anthropic.errors import ANTHROPIC
from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.api.streams import StreamForm
from phi3_serve.core import Completion, Delta, Done, Usage
from phi3_serve.errors import EngineFailure, Phi3ServeError

Json = dict[str, Any]


def _event(kind: str, **content: Any) -> bytes:
    return sse.event({"type": kind, **content}, name=kind)


_PING = _event("ping")
FORM = StreamForm(sse.MEDIA_TYPE, keep_alive=_PING)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWriter:
    """Writes one answer, plain or as a stream."""

    id: str
    model: str

    def whole(self, done: Done) -> Json:
        """The plain answer."""
        completion = done.completions[0]
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        return {**self._message(done.usage, completion), "content": [_text_block(completion.text)], **warnings}

    async def events(self, events: Events) -> AsyncGenerator[bytes, None]:
        """The events of a stream. The first text brings the number of tokens of the prompt, which the start has."""
        has_begun = False
        async with aclosing(events):
            async for event in events:
                if not has_begun:
                    for opening in self._opening(event):
                        yield opening
                    has_begun = True
                if isinstance(event, Delta):
                    yield _text_delta(event.text)
                    continue
                for closing in self._closing(event):
                    yield closing
                return
        raise EngineFailure(INCOMPLETE_ANSWER)

    def _opening(self, first: Delta | Done) -> list[bytes]:
        assert first.usage is not None  # noqa: S101 - the request asks for it
        usage = Usage(first.usage.prompt_tokens, 0)
        opening = [
            _event("message_start", message={**self._message(usage), "content": []}),
            _event("content_block_start", index=0, content_block=_text_block("")),
            _PING,
        ]
        if isinstance(first, Done) and (text := first.completions[0].text):  # beams give no deltas
            opening.append(_text_delta(text))
        return opening

    def _closing(self, done: Done) -> list[bytes]:
        usage = {"input_tokens": done.usage.prompt_tokens, "output_tokens": done.usage.completion_tokens}
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        return [
            _event("content_block_stop", index=0),
            _event("message_delta", delta=_end(done.completions[0]), usage=usage, **warnings),
            _event("message_stop"),
        ]

    def _message(self, usage: Usage, completion: Completion | None = None) -> Json:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            **_end(completion),
            "usage": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens},
        }


def error_event(error: Phi3ServeError) -> bytes:
    """The event that ends a stream with ``error``."""
    return sse.event(ANTHROPIC.body(error), name="error")


def _text_block(text: str) -> Json:
    return {"type": "text", "text": text}


def _text_delta(text: str) -> bytes:
    return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def _end(completion: Completion | None) -> Json:
    """Why the answer ended; nulls while it has not."""
    if completion is None:
        return {"stop_reason": None, "stop_sequence": None}
    if completion.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_string}
    reason = "max_tokens" if completion.sequence.finish_reason == "length" else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}
