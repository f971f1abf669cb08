"""Every failure as an HTTP answer."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from phi3_serve.api.error_mapping import body_of, headers_of, is_openai, openai_body, status_of
from phi3_serve.errors import Phi3ServeError

logger = logging.getLogger("ray.serve")

_NAME = re.compile(r"[A-Za-z_]\w{0,63}")


def install_error_handlers(app: FastAPI) -> None:
    """Make every failure of ``app`` KAITO's ``{"detail": ...}``, and under ``/v1`` OpenAI's ``{"error": ...}``."""

    @app.exception_handler(Phi3ServeError)
    async def ours(request: Request, error: Phi3ServeError) -> Response:
        return answer_to(local_path(request.scope), error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [_problem(problem, request) for problem in error.errors()]
        if not is_openai(local_path(request.scope)):
            return _json(422, {"detail": problems})
        place = ".".join(str(part) for part in problems[0]["loc"] if part != "body")
        message = f"{place}: {problems[0]['msg']}" if place else problems[0]["msg"]
        return _json(400, openai_body(400, message, place or None))

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
    return _json(status_of(error), body_of(path, error), headers_of(error))


def refusal(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says only what is wrong, in the manner of the API that ``path`` belongs to."""
    body = openai_body(status, message) if is_openai(path) else {"detail": message}
    return _json(status, body, headers)


def local_path(scope: Scope) -> str:
    """The path below the route prefix at which Serve has put the app."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _json(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII, so that no text of a client, a lone surrogate say, can break it."""
    return Response(json.dumps(body, ensure_ascii=True), status, headers, media_type="application/json")


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
