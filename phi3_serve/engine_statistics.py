"""What one engine has counted since its start. Plain Python: its thread counts, and other threads read.

The engine counts here and not in the metrics of Ray, of which one call takes 12 microseconds.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

# Upper bounds of buckets, in seconds. A plain step takes milliseconds; a request may wait for minutes.
STEP_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)


class Histogram:
    """How many values lie in each bucket, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: the largest value of each bucket, ascending. A last bucket has all larger values."""
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, count: int = 1) -> None:
        """Add ``count`` equal values."""
        self._counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of values in each bucket; the last one has no upper bound."""
        return tuple(self._counts)


class EngineStatistics:
    """Counts and distributions. Times in seconds, sizes in tokens or sequences."""

    def __init__(self) -> None:
        self.prompt_tokens = 0  # of the requests that have got their first token
        self.generation_tokens = 0  # chosen, those of all beams
        self.prefix_cache_queries = 0  # tokens that were looked for in the prefix cache
        self.prefix_cache_hits = 0  # of these, the tokens that were there
        self.num_preemptions = 0
        self.num_drafts = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0  # of drafts
        self.queue_s = Histogram(REQUEST_SECONDS)  # from the arrival to the first step
        self.prefill_s = Histogram(REQUEST_SECONDS)  # from there to the first token
        self.decode_s = Histogram(REQUEST_SECONDS)  # from there to the last token
        self.inter_token_s = Histogram(STEP_SECONDS)  # between two tokens of a request
        self.step_tokens = Histogram(SIZES)  # run in one step
        self.step_sequences = Histogram(SIZES)  # run in one step
        self._last_step_at = 0.0
        self._num_since_last_step = 0  # requests that got one token, and one in the step before
        self._other_intervals = Counter[tuple[float, int]]()  # (start, tokens)

    def count_tokens(self, num_tokens: int, *, since: float) -> None:
        """A request has got ``num_tokens``, and its tokens before these at ``since``.

        Most requests of a step got one token together in the step before. So ``end_step`` has one interval for all.
        """
        if num_tokens == 1 and since == self._last_step_at:
            self._num_since_last_step += 1
        else:
            self._other_intervals[since, num_tokens] += 1

    def end_step(self, now: float) -> None:
        """The tokens that were counted since the last call were chosen at ``now``."""
        if self._num_since_last_step:
            self.inter_token_s.observe(now - self._last_step_at, self._num_since_last_step)
        for (since, num_tokens), num_requests in self._other_intervals.items():
            self.inter_token_s.observe((now - since) / num_tokens, num_tokens * num_requests)
        self._other_intervals.clear()
        self._last_step_at, self._num_since_last_step = now, 0
