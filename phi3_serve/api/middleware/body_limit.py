"""Limits on request bodies that answer in our JSON; Starlette's own answers in plain text."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.error_handlers import local_path, refusal
from phi3_serve.api.limits import CurrentLimits


class BodyLimitMiddleware:
    """Refuses a body by its Content-Length before it is read, and a chunked one once it is too long or too slow."""

    def __init__(self, app: ASGIApp, limits: CurrentLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 413 or 408."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        max_bytes, timeout_s = self._limits.current.max_body_bytes, self._limits.current.body_timeout_s
        too_large = f"The body is larger than {max_bytes:,} bytes."
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > max_bytes:
            await refusal(local_path(scope), 413, too_large)(scope, receive, send)
            return
        num_bytes, is_complete = 0, False

        async def counted() -> Message:
            nonlocal num_bytes, is_complete
            try:
                # After the body comes only the news that the client has gone, and that may take as long as it likes.
                async with asyncio.timeout(None if is_complete else timeout_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"No piece of the body came for {timeout_s:g} seconds.") from None
            num_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if num_bytes > max_bytes:
                raise HTTPException(413, too_large)
            return message

        await self._app(scope, counted, send)
