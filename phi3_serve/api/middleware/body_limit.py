"""Limits on request bodies: their encoding, their size, and the time that they take to arrive."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.error_handlers import error_response, local_path
from phi3_serve.api.error_mapping import status_of
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.errors import BodyTooLarge, Phi3ServeError, RequestTimeout, UnsupportedBody


class BodyLimitMiddleware:
    """Answers 415 to an encoded body, 413 to one that is too large, 408 to one that arrives too slowly."""

    def __init__(self, app: ASGIApp, limits: CurrentLimits, max_bytes_at: Mapping[str, int] | None = None) -> None:
        """``max_bytes_at``: paths whose bodies have a maximum size of their own."""
        self._app = app
        self._limits = limits
        self._max_bytes_at = max_bytes_at or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._limits.current
        max_bytes = self._max_bytes_at.get(local_path(scope), limits.max_body_bytes)
        if error := _refused_by_headers(Headers(scope=scope), max_bytes):
            await error_response(local_path(scope), error)(scope, receive, send)
        else:
            await self._app(scope, _limited(receive, max_bytes, limits.body_timeout_s), send)


def _refused_by_headers(headers: Headers, max_bytes: int) -> Phi3ServeError | None:
    encoding = headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        return UnsupportedBody(
            f"This server does not decode the Content-Encoding {encoding[:40]!r}; send the body unencoded."
        )
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > max_bytes:
        return _too_large(max_bytes)
    return None


def _limited(receive: Receive, max_bytes: int, timeout_s: float) -> Receive:
    """``receive`` that raises once the body is too large or too slow."""
    num_bytes, is_complete = 0, False

    async def receive_limited() -> Message:
        nonlocal num_bytes, is_complete
        try:
            # After the body only the client's disconnect is received, at any later time.
            async with asyncio.timeout(None if is_complete else timeout_s):
                message = await receive()
        except TimeoutError:
            slow = RequestTimeout(f"No part of the body arrived for {timeout_s:g} seconds.")
            raise _as_http(slow) from None
        num_bytes += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if num_bytes > max_bytes:
            raise _as_http(_too_large(max_bytes))
        return message

    return receive_limited


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {max_bytes:,} bytes.")


def _as_http(error: Phi3ServeError) -> HTTPException:
    """The exception that passes through FastAPI, which turns any other one into a 400 while it reads a body."""
    return HTTPException(status_of(error), error.message)
