"""Server-sent events as bytes (WHATWG HTML, section 9.2)."""

import json
from typing import Any

MEDIA_TYPE = "text/event-stream"
# Without these, a proxy may hold events back; nginx reads X-Accel-Buffering.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
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
