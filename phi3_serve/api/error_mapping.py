"""The error tree in HTTP: statuses, headers, and what the OpenAPI document says of them. The same for every API.

Plain Python, because the launcher of HAProxy imports this module too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phi3_serve.errors import (
    AdapterUnavailable,
    BodyTooLarge,
    CheckpointError,
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    NotFound,
    Overloaded,
    PermissionDenied,
    Phi3ServeError,
    ReplicaLost,
    RequestTimeout,
    StorageUnavailable,
    Unauthorized,
    UnknownModel,
    UnsupportedBody,
)

# An error without a row has the status of its nearest base class.
STATUS: Mapping[type[Phi3ServeError], int] = {
    InvalidRequest: 400,
    UnknownModel: 404,
    NotFound: 404,
    Unauthorized: 401,
    PermissionDenied: 403,
    BodyTooLarge: 413,
    UnsupportedBody: 415,
    RequestTimeout: 408,
    Overloaded: 429,
    ModelUnavailable: 503,
    AdapterUnavailable: 503,
    CheckpointError: 503,
    StorageUnavailable: 503,
    EngineFailure: 500,
    Phi3ServeError: 500,
}
MEANING: Mapping[int, str] = {
    400: "A parameter is refused, or contradicts another parameter or the model",
    401: "The server requires an API key, and the request has none or an unknown one",
    403: "The API key lacks the scope that the endpoint needs",
    404: "The server does not serve this model",
    408: "The request did not finish in time",
    413: "The body is too large",
    415: "The body has a Content-Encoding, for example gzip",
    429: "Too many requests are waiting, or the API key has reached its limit; Retry-After says when to try again",
    500: "The server failed",
    503: "The model is loading (then with Retry-After) or cannot run here, or an adapter cannot be loaded",
}
_WRONG_FIELD = "A field has the wrong type or is out of range"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request that does not have the type or the range of the schema."""

    location: tuple[str | int, ...]  # "body" or "query", then names of fields and indices of lists
    message: str
    type: str  # pydantic's name for the kind of error

    @property
    def field(self) -> str:
        """The name of the field, as "messages.0.content"; empty if it is the body itself."""
        if self.type == "json_invalid":  # at a character of the body
            return ""
        return ".".join(str(part) for part in self.location[1:])

    @property
    def named_message(self) -> str:
        """The message behind the name of the field."""
        return f"{self.field}: {self.message}" if self.field else self.message


class ErrorFormat(Protocol):
    """How one API writes errors."""

    @property
    def validation_status(self) -> int:
        """The status of a request that does not fit the schema."""

    def body(self, error: Phi3ServeError) -> dict[str, Any]:
        """The JSON body of ``error``."""

    def http_body(self, status: int, message: str) -> dict[str, Any]:
        """The JSON body of an error that is not in the tree, for example an unknown path."""

    def validation_body(self, errors: Sequence[FieldError]) -> dict[str, Any]:
        """The JSON body of a request that does not fit the schema; ``errors`` is not empty."""


def status_of(error: Phi3ServeError) -> int:
    """The HTTP status of ``error``."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def headers_of(error: Phi3ServeError) -> dict[str, str]:
    """The headers of the answer to ``error``: Retry-After where waiting helps."""
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, ReplicaLost):
        return {
            "x-should-retry": "false"
        }  # OpenAI's clients send a request that got 500 twice more, unless this says no
    seconds = error.retry_after_s if isinstance(error, ModelUnavailable) else None
    return {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}


def documented(
    errors: Iterable[type[Phi3ServeError]], validation_status: int | None = None
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's ``responses`` of a route that can raise ``errors``.

    ``validation_status`` is that of the API's error format, for a route that reads fields.
    """
    meanings = {status: MEANING[status] for status in {STATUS[error] for error in errors}}
    if validation_status is not None:
        refused = meanings.get(validation_status)
        meanings[validation_status] = f"{refused}. {_WRONG_FIELD}" if refused else _WRONG_FIELD
    return {status: {"description": meanings[status]} for status in sorted(meanings)}
