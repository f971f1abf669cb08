"""Limits of each API key."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.error_handlers import error_response, local_path
from phi3_serve.api.keys import key_of
from phi3_serve.errors import Overloaded


class RateLimitMiddleware:
    """Answers 429 to a POST beyond a limit of its key. The answers to all others have the limits in headers."""

    def __init__(self, app: ASGIApp, *, on_refusal: Callable[[str, Overloaded], None]) -> None:
        """``on_refusal`` gets the name of the key too."""
        self._app = app
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        key = key_of(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if key is None:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(key.rate_limit_headers())
            await send(message)

        if refusal := key.refusal():
            self._on_refusal(key.name, refusal)
            await error_response(local_path(scope), refusal)(scope, receive, send_with_limits)
            return
        with key.running():
            await self._app(scope, receive, send_with_limits)
