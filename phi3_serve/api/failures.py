"""Every failure as an HTTP answer: one table from the tree of errors to statuses."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from phi3_serve.errors import (
    CheckpointError,
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    Phi3ServeError,
    RequestTimeout,
    UnknownModel,
)

logger = logging.getLogger("ray.serve")

_NAME = re.compile(r"[A-Za-z_]\w{0,63}")

# The class itself or the nearest one above it decides.
STATUS: Mapping[type[Phi3ServeError], int] = {
    InvalidRequest: 400,
    UnknownModel: 404,
    RequestTimeout: 408,
    Overloaded: 429,
    ModelUnavailable: 503,
    CheckpointError: 503,
    EngineFailure: 500,
    Phi3ServeError: 500,
}


def status_of(error: Phi3ServeError) -> int:
    """The HTTP status of ``error``."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def answer_failures_as_detail(app: FastAPI) -> None:
    """Make every failure of ``app`` KAITO's ``{"detail": ...}``."""

    @app.exception_handler(Phi3ServeError)
    async def ours(request: Request, error: Phi3ServeError) -> Response:
        return detail(status_of(error), error.message, retry_after(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return detail(422, [_problem(problem, request) for problem in error.errors()])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return detail(error.status_code, error.detail, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        logger.error("unexpected failure of %s %s", request.method, request.url.path, exc_info=error)
        return detail(500, "Internal Server Error")


def detail(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Response:
    """``{"detail": content}``, in ASCII so that no text of a client, a lone surrogate say, can break it."""
    body = json.dumps({"detail": content}, ensure_ascii=True)
    return Response(body, status, headers, media_type="application/json")


def retry_after(error: Phi3ServeError) -> dict[str, str]:
    """The Retry-After header, where waiting helps."""
    seconds = error.retry_after_s if isinstance(error, ModelUnavailable) else None
    return {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}


def _problem(problem: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """One of pydantic's problems: where, what and of which kind; without the value, which may not be printable."""
    location: Sequence[Any] = problem["loc"]
    message = str(problem["msg"])
    if problem["type"] == "json_invalid":
        reason = problem.get("ctx", {}).get("error", "")
        message = f"The body is not JSON at character {location[-1]}: {reason}. Check the quoting of your shell."
    elif location == ("body",) and "json" not in (content_type := request.headers.get("content-type", "")):
        message = f"The Content-Type header must be application/json; it is {content_type[:80] or 'missing'}."
    elif location == ("body",) and problem["type"] == "missing":
        message = "The body is empty; send a JSON object."
    elif problem["type"] in ("model_attributes_type", "dataclass_type"):
        message = "This must be a JSON object."
    elif problem["type"] == "predicate_failed":  # Characters, the only predicate
        message = "The text holds half of a surrogate pair, which is no character."
    # Of a union pydantic also names the branch, `list[constrained-int]` say; that is no place in the body.
    shown = [part for part in location if isinstance(part, int) or _NAME.fullmatch(part)]
    return {"loc": shown, "msg": message, "type": problem["type"]}
