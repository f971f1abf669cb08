"""Who is let in. What could neither run nor wait is refused before any of it is read: that costs next to nothing."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.error_handlers import answer_to, local_path
from phi3_serve.api.headers import CAPACITY
from phi3_serve.overload import server_is_full


class AdmissionMiddleware:
    """Answers 429 to a POST beyond ``capacity()`` others; who only looks, at /health say, is never refused.

    Every answer tells the capacity, so that the proxy before this can refuse what this would (``serving.haproxy``).
    """

    def __init__(self, app: ASGIApp, capacity: Callable[[], int]) -> None:
        self._app = app
        self._capacity = capacity
        self._num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[CAPACITY] = str(self._capacity())
            await send(message)

        if scope["method"] != "POST":
            await self._app(scope, receive, telling)
            return
        if self._num_inside >= (capacity := self._capacity()):
            await answer_to(local_path(scope), server_is_full(self._num_inside, capacity))(scope, receive, telling)
            return
        self._num_inside += 1
        try:
            await self._app(scope, receive, telling)
        finally:
            self._num_inside -= 1
