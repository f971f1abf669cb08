"""A backend whose first event comes when the test says so, or the error that the test sets."""

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message, Send

from phi3_serve.api.streams import EventStream
from phi3_serve.core.generation_request import GenerationRequest
from tests.support import LocalBackend


class Late(LocalBackend):
    """Waits before the first event of each request."""

    def __init__(self, backend: LocalBackend) -> None:
        super().__init__(backend.replica)
        self.go_on = threading.Event()
        self.error: Exception | None = None
        self.num_inside = 0
        self._keep_alives = threading.Semaphore(0)

    async def generate(self, request: GenerationRequest) -> Any:
        self.num_inside += 1
        try:
            while not self.go_on.is_set():  # noqa: ASYNC110 - another thread sets it
                await asyncio.sleep(0.01)
            if self.error is not None:
                raise self.error
            async for event in super().generate(request):
                yield event
        finally:
            self.num_inside -= 1

    def note_keep_alives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count what keeps streams alive, for ``go_on_after``."""
        keep_alive = EventStream._keep_alive

        async def noting(stream: EventStream, send: Send) -> None:
            async def send_and_note(message: Message) -> None:
                await send(message)
                self._keep_alives.release()

            await keep_alive(stream, send_and_note)

        monkeypatch.setattr(EventStream, "_keep_alive", noting)

    def go_on_after(self, num_keep_alives: int) -> None:
        """Give the first event when so many keep-alives were sent, from now on. The first of them follows the status."""
        self.go_on.clear()
        while self._keep_alives.acquire(blocking=False):
            pass

        def go_on() -> None:
            for _ in range(num_keep_alives):
                assert self._keep_alives.acquire(timeout=30)
            self.go_on.set()

        threading.Thread(target=go_on, daemon=True).start()


def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(url: str, path: str, body: dict[str, Any]) -> http.client.HTTPConnection:
    """A connection on which ``body`` was sent."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection
