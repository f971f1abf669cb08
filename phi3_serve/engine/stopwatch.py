"""How long the parts of one request take."""

import time
from dataclasses import dataclass, field

from phi3_serve.core.usage import Timings


@dataclass(slots=True)
class Stopwatch:
    """The times of one request, in seconds of ``time.monotonic``."""

    arrived_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def note_start(self) -> None:
        """The next step begins the request. A later start, after a preemption, counts as part of the answer."""
        if self.started_at is None:
            self.started_at = time.monotonic()

    def note_tokens(self, now: float) -> None:
        """Tokens were chosen."""
        if self.first_token_at is None:
            self.first_token_at = now
        self.last_token_at = now

    def timings(self) -> Timings:
        """The times up to the last token."""
        now = time.monotonic() if self.last_token_at is None else self.last_token_at
        started_at = now if self.started_at is None else self.started_at
        first_token_at = now if self.first_token_at is None else self.first_token_at
        return Timings(
            queue_s=started_at - self.arrived_at, prompt_s=first_token_at - started_at, answer_s=now - first_token_at
        )
