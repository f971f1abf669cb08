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
from starlette.types import Scope

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

logger = logging.getLogger("ray.serve")

_NAME = re.compile(r"[A-Za-z_]\w{0,63}")

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


def answer_failures(app: FastAPI) -> None:
    """Make every failure of ``app`` KAITO's ``{"detail": ...}``, and under ``/v1`` OpenAI's ``{"error": ...}``."""

    @app.exception_handler(Phi3ServeError)
    async def ours(request: Request, error: Phi3ServeError) -> Response:
        return answer_to(local_path(request.scope), error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [_problem(problem, request) for problem in error.errors()]
        if not _is_openai(local_path(request.scope)):
            return _json(422, {"detail": problems})
        place = ".".join(str(part) for part in problems[0]["loc"] if part != "body")
        message = f"{place}: {problems[0]['msg']}" if place else problems[0]["msg"]
        return _json(400, _error(400, message, place or None, None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return refusal(local_path(request.scope), error.status_code, error.detail, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        name = f"{request.method} {request.url.path} ({request.state.request_id})"
        logger.error("unexpected failure of %s", name, exc_info=error)
        return refusal(local_path(request.scope), 500, "Internal Server Error")


def answer_to(path: str, error: Phi3ServeError) -> Response:
    """``error`` in the manner of the API that ``path`` belongs to."""
    body = openai_error(error) if _is_openai(path) else {"detail": error.message}
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else retry_after(error)
    return _json(status_of(error), body, headers)


def refusal(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says only what is wrong, in the manner of the API that ``path`` belongs to."""
    body = _error(status, message, None, None) if _is_openai(path) else {"detail": message}
    return _json(status, body, headers)


def openai_error(error: Phi3ServeError) -> dict[str, Any]:
    """``error`` as OpenAI's API says it."""
    code = next((CODE[cls] for cls in type(error).__mro__ if cls in CODE), None)
    param = error.param if isinstance(error, InvalidRequest) else None
    return _error(status_of(error), error.message, param, code)


def _error(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    kind = (
        "invalid_request_error"
        if status < 500 and status != 429
        else "rate_limit_error"
        if status == 429
        else "server_error"
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def local_path(scope: Scope) -> str:
    """The path below the route prefix at which Serve has put the app."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _is_openai(path: str) -> bool:
    return path == "/v1" or (path.startswith("/v1/") and path != "/v1/chat")


def _json(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII, so that no text of a client, a lone surrogate say, can break it."""
    return Response(json.dumps(body, ensure_ascii=True), status, headers, media_type="application/json")


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
