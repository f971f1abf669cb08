"""How many tokens an API key may still use."""

import time
from collections.abc import Callable


class TokenBudget:
    """A limit of tokens a minute, refilled evenly: after a minute without requests it is full.

    The cost of a request is known at its end, so ``remaining`` can become negative. The key then waits until the
    refill has paid the debt. Over time a key gets no more than its limit, without an estimate of any answer's length.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute  # may be changed at any time; what is used stays used
        self._clock = clock  # seconds
        self._used = 0.0
        self._updated_at = clock()

    @property
    def remaining(self) -> float:
        """Tokens that may be used now."""
        return self.per_minute - self._used_now()

    def spend(self, num_tokens: int) -> None:
        """Count ``num_tokens`` as used."""
        self._used = self._used_now() + num_tokens

    def seconds_until(self, remaining: float) -> float:
        """Seconds until ``remaining`` tokens may be used; 0 if they may be used now."""
        return max(0.0, (remaining - self.remaining) * 60 / self.per_minute)

    def _used_now(self) -> float:
        now = self._clock()
        self._used = max(0.0, self._used - (now - self._updated_at) * self.per_minute / 60)
        self._updated_at = now
        return self._used
