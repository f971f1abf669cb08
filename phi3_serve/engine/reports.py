"""The hand-over of events to the callers that wait for them."""

import logging
import threading
from collections.abc import Callable

from phi3_serve.core.engine_event import EngineEvent, Finished
from phi3_serve.core.event import Failed
from phi3_serve.engine.generation import Generation

logger = logging.getLogger("phi3_serve")


class Reports:
    """The requests in flight, each of which gets events until its last one."""

    def __init__(self, on_listener_failure: Callable[[str], None]) -> None:
        """``on_listener_failure`` is called with the id of a request whose listener raised an exception."""
        self._on_listener_failure = on_listener_failure
        self._in_flight: dict[str, Generation] = {}
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> list[Generation]:
        """All requests that have not had their last event, oldest first."""
        with self._lock:
            return list(self._in_flight.values())

    def open(self, generation: Generation) -> None:
        """Expect events for ``generation``."""
        with self._lock:
            self._in_flight[generation.request.request_id] = generation

    def find(self, request_id: str) -> Generation | None:
        """The request with this id; None if it is not in flight."""
        with self._lock:
            return self._in_flight.get(request_id)

    def withdraw(self, request_id: str) -> Generation | None:
        """Hand over no more events for this request; None if it is not in flight."""
        with self._lock:
            return self._in_flight.pop(request_id, None)

    def deliver(self, generation: Generation, event: EngineEvent) -> None:
        """Hand over ``event`` unless the request is withdrawn."""
        request_id = generation.request.request_id
        with self._lock:
            if self._in_flight.get(request_id) is not generation:
                return
            if isinstance(event, Finished | Failed):  # the last event
                del self._in_flight[request_id]
        try:
            generation.on_event(event)
        except Exception:  # for example because the listener's event loop is closed
            logger.exception("the listener of request %s failed", request_id)
            self._on_listener_failure(request_id)
