"""What is known of one HTTP request at its end: for its line in the log, and for its trace. It never has the prompt."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.usage import Timings
from phi3_serve.errors import Phi3ServeError

Source = Literal["http", "batch"]


@dataclass(slots=True)
class Generation:
    """One request to a model. An HTTP request has several if it asks for several prompts or answers."""

    request: GenerationRequest
    began_at: int = field(default_factory=time.time_ns)  # nanoseconds since 1970
    first_at: int | None = None
    ended_at: int | None = None
    done: Done | None = None
    error: str | None = None  # the class of the error
    timings: Timings | None = None  # in the engine, if it had begun the request

    def note(self, event: Delta | Done) -> None:
        """An event has come."""
        if self.first_at is None:
            self.first_at = time.time_ns()
        if isinstance(event, Done):
            self.done = event
            self.timings = event.timings

    def fail(self, error: Phi3ServeError) -> None:
        """The request has ended with ``error``."""
        self.error = type(error).__name__
        self.timings = error.timings


@dataclass(slots=True)
class RequestRecord:
    """One HTTP request."""

    request_id: str  # the client's, or a new one
    method: str
    path: str
    source: Source = "http"
    headers: Mapping[str, str] = field(default_factory=dict)  # of the trace that the client has begun
    api_key: str | None = None  # its name
    began_at: int = field(default_factory=time.time_ns)  # nanoseconds since 1970
    ended_at: int | None = None
    status: int | None = None  # None: the client went away before it had one
    generations: list[Generation] = field(default_factory=list)


Sink = Callable[[RequestRecord], None]
