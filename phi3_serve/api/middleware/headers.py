"""Headers of requests and responses: the request id, Ray Serve's own headers, and the security headers."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.headers import REQUEST_ID, SECURITY_HEADERS

# Ray Serve's proxy reads these, and a client can lift Serve's own limits with them. The limits of this server do not
# depend on Serve's, and no route needs to see the headers.
RAY_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    }
)
_MAX_ID_LENGTH = 128
_NOT_ALLOWED_IN_ID = re.compile(r"[^A-Za-z0-9._:/+=@-]+")


class HeadersMiddleware:
    """Gives each request an id, removes Ray's headers from it, and adds security headers to the response."""

    def __init__(self, app: ASGIApp, *, adds_request_id: bool) -> None:
        """``adds_request_id``: send the id back in the response. Ray Serve's proxy does so itself."""
        self._app = app
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = clean_id(Headers(scope=scope).get(REQUEST_ID, ""))
        scope.setdefault("state", {})["request_id"] = request_id
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in RAY_HEADERS]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self._adds_request_id:
                    headers[REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_headers)


def clean_id(given: str) -> str:
    """``given`` without characters that must not be logged or sent back, or a new id if nothing is left."""
    return _NOT_ALLOWED_IN_ID.sub("", given)[:_MAX_ID_LENGTH] or uuid.uuid4().hex
