"""The tokens of an API key that its batches may use: half of its minute. The other half is left to other requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from phi3_serve.api.keys import ApiKey


class TokenShare:
    """How many requests of the batches of one key are in flight.

    A request is charged at its end, so those in flight count with the mean of the earlier ones. The first one is alone.
    """

    def __init__(self) -> None:
        self._num_in_flight = 0
        self._num_ended = 0
        self._num_tokens = 0  # of those that have ended

    def has_room(self, key: ApiKey) -> bool:
        """Whether one more request may be sent."""
        spare = key.tokens_above_half
        if spare is None:
            return True
        if not self._num_ended:
            return spare >= 0 and not self._num_in_flight
        return spare >= self._num_in_flight * self._num_tokens / self._num_ended

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count one request as in flight."""
        self._num_in_flight += 1
        try:
            yield
        finally:
            self._num_in_flight -= 1

    def ended(self, num_tokens: int) -> None:
        """Learn what a request has cost."""
        self._num_ended += 1
        self._num_tokens += num_tokens
