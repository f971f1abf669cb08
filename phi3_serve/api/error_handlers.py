"""Every error as an HTTP response, in the format of the API that the path belongs to."""

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from phi3_serve.api.error_formats import error_format_of
from phi3_serve.api.error_mapping import headers_of, status_of
from phi3_serve.api.field_errors import field_errors
from phi3_serve.errors import Phi3ServeError

logger = logging.getLogger("ray.serve")

_NO_JSON = "There was an error parsing the body"  # of FastAPI, for what json.loads does not call a syntax error
# Starlette's texts where no route matches, or none with the method.
_NO_SUCH_PATH, _NO_SUCH_METHOD = HTTPStatus.NOT_FOUND.phrase, HTTPStatus.METHOD_NOT_ALLOWED.phrase


def install_error_handlers(app: FastAPI) -> None:
    """Let ``app`` answer every error in the format of its API."""

    @app.exception_handler(Phi3ServeError)
    async def known(request: Request, error: Phi3ServeError) -> Response:
        return error_response(local_path(request.scope), error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        errors = error_format_of(local_path(request.scope))
        content_type = request.headers.get("content-type")
        wrong_fields = field_errors(error.errors(), error.body, content_type, request.scope["route"])
        return _json_response(errors.validation_status, errors.validation_body(wrong_fields))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        if error.detail == _NO_JSON and error.__cause__ is not None:
            return _http_response(request, error.status_code, _why_no_json(error.__cause__))
        if error.detail == _NO_SUCH_PATH:
            return _http_response(request, error.status_code, _no_endpoint(request), error.headers)
        if error.detail == _NO_SUCH_METHOD:
            allowed = ", ".join(sorted(_methods_at(request)))
            message = f"{request.url.path[:128]} takes {allowed}, not {request.method[:16]}."
            return _http_response(request, error.status_code, message, {"Allow": allowed})
        return _http_response(request, error.status_code, error.detail, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        name = f"{request.method} {request.url.path} ({request.state.request_id})"
        logger.error("unexpected failure of %s", name, exc_info=error)
        return _http_response(request, 500, "Internal Server Error")


def error_response(path: str, error: Phi3ServeError) -> Response:
    """The response to ``error`` at ``path``."""
    return _json_response(status_of(error), error_format_of(path).body(error), headers_of(error))


def local_path(scope: Scope) -> str:
    """The path of a request without the route prefix of Ray Serve."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")) or "/"


def _why_no_json(cause: BaseException) -> str:
    match cause:
        case UnicodeDecodeError():
            return f"The body is not UTF-8 text: {cause.reason} at byte {cause.start}."
        case RecursionError():
            return "The body is not read: its lists or objects are nested too deeply."
        case ValueError():  # of int, with more than sys.get_int_max_str_digits() digits
            return f"The body is not read: a number in it has more than {sys.get_int_max_str_digits()} digits."
    return f"{_NO_JSON}."


def _no_endpoint(request: Request) -> str:
    docs = f"{request.scope.get('root_path', '')}/docs"
    return f"{request.method[:16]} {request.url.path[:128]} is not an endpoint of this server; {docs} lists all."


def _methods_at(request: Request) -> Iterable[str]:
    """The methods of all routes at the path. Starlette knows only those of the first."""
    routes = iter_route_contexts(request.app.routes)
    at_path = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in at_path for method in route.methods or ()}


def _http_response(request: Request, status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    body = error_format_of(local_path(request.scope)).http_body(status, message)
    return _json_response(status, body, headers)


def _json_response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: a client's text may hold a lone surrogate, which UTF-8 cannot encode."""
    return Response(json.dumps(body, ensure_ascii=True), status, headers, media_type="application/json")
