"""The lines of a batch: OpenAI's format, https://platform.openai.com/docs/api-reference/batch.

A line of the input is a request:
``{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}``.
A line of the output is its answer: ``{"id": ..., "custom_id": "1", "response": {"status_code": 200, "request_id": ...,
"body": {...}}, "error": null}``. The order of the output is that in which the answers came.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO

from phi3_serve.errors import InvalidRequest

METHOD = "POST"
MAX_CUSTOM_ID = 256  # characters
ADAPTER_UNAVAILABLE = "adapter_unavailable"
"""The code of the error of a request that names an adapter that cannot be loaded."""
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

    @property
    def is_of_adapter(self) -> bool:
        """Whether an adapter that the request names cannot be loaded. It says nothing about other requests."""
        error = self.body.get("error") if isinstance(self.body, dict) else None
        return isinstance(error, dict) and error.get("code") == ADAPTER_UNAVAILABLE


class LineError(InvalidRequest):
    """A line is not a request. ``problem`` is the message without the number of the line."""

    def __init__(self, number: int, code: str, problem: str, param: str | None = None) -> None:
        super().__init__(f"Line {number}: {problem}.", param)
        self.args = (number, code, problem, param)
        self.number = number
        self.code = code  # as OpenAI's batches name the problem
        self.problem = problem


def bounded_lines(file: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """The lines of ``file``. Of a line above ``max_bytes`` only the start is read into memory, one byte too many."""
    while raw := file.readline(max_bytes + 1):
        yield raw
        while len(raw) > max_bytes and not raw.endswith(b"\n"):
            raw = file.readline(max_bytes + 1)


def read_lines(
    lines: Iterable[bytes],
    *,
    url: str | None = None,
    max_bytes: int | None = None,
    on_error: Callable[[LineError], None] | None = None,
) -> Iterator[RequestLine]:
    """The requests in ``lines``, one after another; empty lines are skipped.

    Args:
        lines: the lines of a file, in UTF-8.
        url: the only path that is allowed; None allows each.
        max_bytes: the largest size of a line; None allows each.
        on_error: gets each line that is not a request, and the reading goes on. By default the error is raised.

    Raises:
        LineError: a line is not a request, or has the ``custom_id`` of an earlier one. The message names the line.
    """
    seen: dict[str, int] = {}
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            line = _read_line(raw, number, url, max_bytes)
            if line.custom_id in seen:
                same = f"`custom_id` {line.custom_id!r} is also that of line {seen[line.custom_id]}"
                raise LineError(number, "duplicate_custom_id", same, "custom_id")
        except LineError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            seen[line.custom_id] = number
            yield line


def _read_line(raw: bytes, number: int, url: str | None, max_bytes: int | None) -> RequestLine:
    def invalid(field: str, problem: str, code: str = "invalid_value") -> LineError:
        return LineError(number, code, f"`{field}` {problem}", field)

    if max_bytes is not None and len(raw.rstrip(b"\r\n")) > max_bytes:
        raise LineError(number, "line_too_long", f"it has more than {max_bytes:,} bytes")
    try:
        given = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise LineError(number, "invalid_json_line", "it is not text in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise LineError(number, "invalid_json_line", f"it is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise LineError(number, "invalid_json_line", "a JSON object is expected")
    if missing := [name for name in _FIELDS if name not in given]:
        names = ", ".join(f"`{name}`" for name in _FIELDS)
        raise invalid(missing[0], f"is missing; a line has {names}", "missing_required_parameter")
    custom_id, method, path, body = (given[name] for name in _FIELDS)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        raise invalid("custom_id", f"must be a string of 1 to {MAX_CUSTOM_ID} characters")
    if method != METHOD:
        raise invalid("method", f'must be "{METHOD}"', "invalid_method")
    if not isinstance(path, str) or not path.startswith("/"):
        raise invalid("url", 'must be a path that begins with "/", for example "/v1/chat/completions"', "invalid_url")
    if url is not None and path != url:
        raise invalid("url", f"must be {url!r}, the endpoint of the batch", "mismatched_url")
    if not isinstance(body, dict):
        raise invalid("body", "must be a JSON object")
    if body.get("stream"):
        raise invalid("body.stream", "must be false; the answers of a batch are not streamed")
    return RequestLine(custom_id, path, body)


def answer_line(line: RequestLine, reply: Reply) -> str:
    """The line of the output for ``line``, without the line feed."""
    response = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
    return _output_line(line.custom_id, response, None)


def unanswered_line(line: RequestLine, code: str, message: str) -> str:
    """The line of the output for ``line``, which got no answer, without the line feed."""
    error = {"code": code, "message": message}
    return _output_line(line.custom_id, None, error)


def _output_line(custom_id: str, response: Mapping[str, Any] | None, error: Mapping[str, str] | None) -> str:
    made = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(made, ensure_ascii=False)


def read_answer(text: str) -> tuple[str, bool] | None:
    """The ``custom_id`` of a line of the output, and whether it has an answer and no error; None for another text."""
    try:
        line = json.loads(text)
        custom_id, response = line["custom_id"], line.get("response")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    is_answer = isinstance(response, dict) and response.get("status_code") == HTTPStatus.OK
    return (custom_id, is_answer) if isinstance(custom_id, str) else None
