"""Server-sent events (WHATWG HTML, section 9.2) as bytes."""

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi.responses import StreamingResponse

from phi3_serve.api import streams
from phi3_serve.errors import Phi3ServeError

# Two empty lines. They mean nothing, as a comment does, and SGLang's serving benchmark reads every other line as JSON.
KEEP_ALIVE = b"\n\n"
MEDIA_TYPE = "text/event-stream"
FORM = streams.StreamForm(MEDIA_TYPE, keep_alive=KEEP_ALIVE)
END = b"data: [DONE]\n\n"
_EVENT_SCHEMA = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]"}},
    "required": ["data"],
}
# For the OpenAPI document, beside the JSON of the plain answer. OpenAPI describes a stream by the schema of one event.
DOCUMENTED: dict[str, Any] = {
    "description": "The answer; with stream, its events",
    "content": {MEDIA_TYPE: {"schema": _EVENT_SCHEMA}},
}


def event(data: Any, name: str | None = None) -> bytes:
    """One event with ``data`` as JSON, which holds no line break and so fits into one line."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


async def respond(
    events: AsyncGenerator[bytes, None], error_event: Callable[[Phi3ServeError], bytes]
) -> StreamingResponse:
    """The response that streams ``events``; see ``streams.respond``."""
    return await streams.respond(events, error_event, FORM)
