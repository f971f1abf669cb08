"""The lines of a batch: OpenAI's format, https://platform.openai.com/docs/api-reference/batch.

A line of the input is a request:
``{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}``.
A line of the output is its answer: ``{"id": ..., "custom_id": "1", "response": {"status_code": 200, "request_id": ...,
"body": {...}}, "error": null}``. The order of the output is that in which the answers came.
"""

import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from phi3_serve.errors import InvalidRequest

METHOD = "POST"
MAX_CUSTOM_ID = 256  # characters
_FIELDS = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request of a batch."""

    custom_id: str
    url: str  # a path of the server
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server sent for one request."""

    status: int  # of HTTP
    body: Any
    request_id: str | None = None
    retry_after_s: float | None = None

    @property
    def is_answer(self) -> bool:
        """Whether the request has its answer."""
        return self.status == HTTPStatus.OK

    @property
    def may_be_sent_again(self) -> bool:
        """Whether the server asks for the same request later."""
        return self.retry_after_s is not None


def read_lines(lines: Iterable[str], *, url: str | None = None) -> Iterator[RequestLine]:
    """The requests in ``lines``, one after another; empty lines are skipped.

    Args:
        lines: the lines of a file.
        url: the only path that is allowed; None allows each.

    Raises:
        InvalidRequest: a line is not a request, or has the ``custom_id`` of an earlier one. The message names the line.
    """
    seen: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line = _read_line(text, number, url)
        if line.custom_id in seen:
            raise _invalid(number, f"`custom_id` {line.custom_id!r} is also that of line {seen[line.custom_id]}")
        seen[line.custom_id] = number
        yield line


def _read_line(text: str, number: int, url: str | None) -> RequestLine:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise _invalid(number, f"it is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise _invalid(number, "a JSON object is expected")
    if missing := [name for name in _FIELDS if name not in given]:
        raise _invalid(number, f"`{missing[0]}` is missing; a line has {', '.join(f'`{name}`' for name in _FIELDS)}")
    custom_id, method, path, body = (given[name] for name in _FIELDS)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise _invalid(number, f"`custom_id` must be a string of 1 to {MAX_CUSTOM_ID} characters")
    if method != METHOD:
        raise _invalid(number, f'`method` must be "{METHOD}"')
    if not isinstance(path, str) or not path.startswith("/"):
        raise _invalid(number, '`url` must be a path that begins with "/", for example "/v1/chat/completions"')
    if url is not None and path != url:
        raise _invalid(number, f"`url` must be {url!r}, the endpoint of the batch")
    if not isinstance(body, dict):
        raise _invalid(number, "`body` must be a JSON object")
    if body.get("stream"):
        raise _invalid(number, "`body.stream` must be false; the answers of a batch are not streamed")
    return RequestLine(custom_id, path, body)


def _invalid(number: int, message: str) -> InvalidRequest:
    return InvalidRequest(f"Line {number}: {message}.")


def answer_line(line: RequestLine, reply: Reply) -> str:
    """The line of the output for ``line``, without the line feed."""
    response = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
    made = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": response, "error": None}
    return json.dumps(made, ensure_ascii=False)


def answered_id(text: str) -> str | None:
    """The ``custom_id`` of a line of the output; None if it is not one."""
    try:
        custom_id = json.loads(text)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return custom_id if isinstance(custom_id, str) else None
