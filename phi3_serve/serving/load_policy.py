"""When a load that has failed is tried again, by its cause."""

import random
from collections.abc import Mapping
from dataclasses import dataclass

from phi3_serve.errors import (
    AccessDenied,
    CheckpointError,
    CheckpointIncomplete,
    DeviceMissing,
    MemoryFull,
    SourceUnreachable,
    StorageFull,
)

JITTER = 0.2  # of each delay, so that the replicas of a model do not all try at once


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The delays between the tries, in seconds; each is twice the one before."""

    first_delay_s: float
    max_delay_s: float
    passes: bool = False  # the cause ends by itself, often within a minute
    heals: bool = True  # the cause ends without a change of the configuration, so clients may try again
    needs_new_process: bool = False  # another try in this process would fail, too

    def delay_s(self, num_tries: int) -> float:
        """Seconds from the end of the try number ``num_tries`` to the next one."""
        delay = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(num_tries - 1, 30))
        return delay * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - not for secrets


_POLICIES: Mapping[type[CheckpointError], RetryPolicy] = {
    SourceUnreachable: RetryPolicy(2, 60, passes=True),
    StorageFull: RetryPolicy(5, 60, passes=True),
    MemoryFull: RetryPolicy(5, 60, passes=True),
    CheckpointIncomplete: RetryPolicy(5, 60),
    # torch looks for devices once in a process
    DeviceMissing: RetryPolicy(60, 60, heals=False, needs_new_process=True),
    AccessDenied: RetryPolicy(300, 300, heals=False),
    CheckpointError: RetryPolicy(300, 300, heals=False),
}
# The cause is not known, so the state of the process is not known either.
_UNKNOWN = RetryPolicy(300, 300, heals=False, needs_new_process=True)


def retry_policy(error: Exception) -> RetryPolicy:
    """The policy of the cause ``error``."""
    return next((_POLICIES[cls] for cls in type(error).__mro__ if cls in _POLICIES), _UNKNOWN)
