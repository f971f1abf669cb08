"""Server-sent events as bytes (WHATWG HTML, section 9.2)."""

import json
from typing import Any

MEDIA_TYPE = "text/event-stream"
# No proxy may hold events back: nginx reads X-Accel-Buffering.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
END = b"data: [DONE]\n\n"
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, or [DONE]"}},
    "required": ["data"],
}
# For the OpenAPI document, beside the JSON of the plain answer; a stream's schema is that of one event.
DOCUMENTED: dict[str, Any] = {
    "description": "The answer; with stream, the events that make it",
    "content": {MEDIA_TYPE: {"schema": _EVENT}},
}


def event(data: Any, name: str | None = None) -> bytes:
    """One event; JSON has no line break of its own, so one data line holds it."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()
