"""One table from the tree of errors to HTTP: statuses, bodies and headers.

Plain Python, so that the proxy's launcher can say in HAProxy's configuration what the ingress would answer.
"""

import math
from collections.abc import Mapping
from typing import Any

from phi3_serve.errors import (
    CheckpointError,
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    Phi3ServeError,
    RequestTimeout,
    Unauthorized,
    UnknownModel,
    UnsupportedBody,
)

# The class itself or the nearest one above it decides.
STATUS: Mapping[type[Phi3ServeError], int] = {
    InvalidRequest: 400,
    UnknownModel: 404,
    Unauthorized: 401,
    UnsupportedBody: 415,
    RequestTimeout: 408,
    Overloaded: 429,
    ModelUnavailable: 503,
    CheckpointError: 503,
    EngineFailure: 500,
    Phi3ServeError: 500,
}

# OpenAI's codes, where it has one.
CODE: Mapping[type[Phi3ServeError], str] = {
    UnknownModel: "model_not_found",
    Unauthorized: "invalid_api_key",
    Overloaded: "rate_limit_exceeded",
    ModelUnavailable: "model_unavailable",
    RequestTimeout: "timeout",
}


def status_of(error: Phi3ServeError) -> int:
    """The HTTP status of ``error``."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def body_of(path: str, error: Phi3ServeError) -> dict[str, Any]:
    """``error`` in the manner of the API that ``path`` belongs to."""
    return openai_error(error) if is_openai(path) else {"detail": error.message}


def headers_of(error: Phi3ServeError) -> dict[str, str]:
    """What the answer says beside its body: Retry-After, where waiting helps."""
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    seconds = error.retry_after_s if isinstance(error, ModelUnavailable) else None
    return {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}


def openai_error(error: Phi3ServeError) -> dict[str, Any]:
    """``error`` as OpenAI's API says it."""
    code = next((CODE[cls] for cls in type(error).__mro__ if cls in CODE), None)
    param = error.param if isinstance(error, InvalidRequest) else None
    return openai_body(status_of(error), error.message, param, code)


def openai_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, dict[str, str | None]]:
    """OpenAI's ``{"error": ...}``."""
    kind = (
        "invalid_request_error"
        if status < 500 and status != 429
        else "rate_limit_error"
        if status == 429
        else "server_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def is_openai(path: str) -> bool:
    """Whether what is asked at ``path`` is asked in OpenAI's manner."""
    return path == "/v1" or (path.startswith("/v1/") and path != "/v1/chat")
