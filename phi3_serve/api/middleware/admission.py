"""Admission: requests beyond the capacity are refused before their body is read, which costs almost nothing."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.error_handlers import error_response, local_path
from phi3_serve.api.headers import CAPACITY
from phi3_serve.errors import Overloaded
from phi3_serve.overload import server_is_full


class AdmissionMiddleware:
    """Answers 429 to a POST while ``capacity()`` others are in the server. Other methods always pass.

    Every response carries the capacity in a header, so that HAProxy can refuse the same requests (``launch.haproxy``).
    """

    def __init__(self, app: ASGIApp, *, capacity: Callable[[], int], on_refusal: Callable[[Overloaded], None]) -> None:
        self._app = app
        self._capacity = capacity
        self._on_refusal = on_refusal
        self._num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 429."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_capacity(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[CAPACITY] = str(self._capacity())
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, send_with_capacity)
            return
        if self._num_inside >= (capacity := self._capacity()):
            refusal = server_is_full(self._num_inside, capacity)
            self._on_refusal(refusal)
            await error_response(local_path(scope), refusal)(scope, receive, send_with_capacity)
            return
        self._num_inside += 1
        try:
            await self._app(scope, receive, send_with_capacity)
        finally:
            self._num_inside -= 1
