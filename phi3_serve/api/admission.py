"""Who is let in. What could neither run nor wait is refused before any of it is read: that costs next to nothing."""

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from phi3_serve.api.failures import answer_to, local_path
from phi3_serve.errors import Overloaded

RETRY_AFTER_S = 5.0


class AdmissionMiddleware:
    """Answers 429 to a POST beyond ``capacity()`` others; who only looks, at /health say, is never refused."""

    def __init__(self, app: ASGIApp, capacity: Callable[[], int]) -> None:
        self._app = app
        self._capacity = capacity
        self._num_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or answer why not."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._num_inside >= (capacity := self._capacity()):
            error = Overloaded(f"{self._num_inside} requests are here already, the limit is {capacity}.", RETRY_AFTER_S)
            await answer_to(local_path(scope), error)(scope, receive, send)
            return
        self._num_inside += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_inside -= 1
