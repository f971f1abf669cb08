"""The answers of ``/v1/responses``: plain, and as the events of a stream."""

import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from phi3_serve.api import sse
from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.core import Delta, Done, Usage
from phi3_serve.errors import EngineFailure, InvalidRequest, Overloaded, Phi3ServeError

Json = dict[str, Any]
# The text of an answer is the only part of the only item.
_PLACE = {"output_index": 0, "content_index": 0}


@dataclass(kw_only=True)
class ResponseWriter:
    """Writes one answer, plain or as a stream. ``settings``: the fields that repeat the request."""

    id: str
    model: str
    settings: Mapping[str, Any]
    created_at: int = field(default_factory=lambda: int(time.time()))
    _num_events: int = 0

    def whole(self, done: Done) -> Json:
        """The plain answer."""
        completion = done.completions[0]
        is_cut = completion.sequence.finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        return {
            **self._response(status, output=[self._item(status, [_part(completion.text)])], usage=_usage(done.usage)),
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            **warnings,
        }

    async def events(self, events: Events) -> AsyncGenerator[bytes, None]:
        """The events of a stream. None is sent before the first text, so that an earlier error has its own status."""
        text = ""
        async with aclosing(events):
            async for event in events:
                if not self._num_events:
                    for opening in (*self._start(), *self._opening()):
                        yield opening
                piece = event.text if isinstance(event, Delta) else event.completions[0].text[len(text) :]
                if piece:  # of Done, if there was no delta, as with beams
                    text += piece
                    yield self._of_part("response.output_text.delta", delta=piece, logprobs=[])
                if isinstance(event, Done):
                    for closing in self._closing(event):
                        yield closing
                    return
        raise EngineFailure(INCOMPLETE_ANSWER)

    def failed(self, error: Phi3ServeError) -> bytes:
        """The events that end a stream with ``error``."""
        response = self._response("failed", error={"code": _code(error), "message": error.message})
        start = () if self._num_events else self._start()
        return b"".join((*start, self._event("response.failed", response=response)))

    def _start(self) -> Iterable[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def _opening(self) -> Iterable[bytes]:
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
        yield self._of_part("response.content_part.added", part=_part(""))

    def _closing(self, done: Done) -> Iterable[bytes]:
        response = self.whole(done)
        (item,) = response["output"]
        (part,) = item["content"]
        yield self._of_part("response.output_text.done", text=part["text"], logprobs=[])
        yield self._of_part("response.content_part.done", part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def _of_part(self, kind: str, **content: Any) -> bytes:
        return self._event(kind, item_id=self._item_id, **_PLACE, **content)

    def _event(self, kind: str, **content: Any) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return sse.event({"type": kind, "sequence_number": number, **content}, name=kind)

    @property
    def _item_id(self) -> str:
        return f"msg_{self.id.removeprefix('resp_')}"

    def _item(self, status: str, content: list[Json]) -> Json:
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _response(
        self, status: str, *, output: Iterable[Json] = (), usage: Json | None = None, error: Json | None = None
    ) -> Json:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": error,
            "incomplete_details": None,
            "model": self.model,
            "output": list(output),
            "usage": usage,
            **self.settings,
        }


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _code(error: Phi3ServeError) -> str:
    """OpenAI's code of a failed response."""
    if isinstance(error, InvalidRequest):
        return "invalid_prompt"
    return "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error"
