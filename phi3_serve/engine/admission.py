"""Which requests an engine's queue takes. Plain Python, no tensors."""

from collections.abc import Sequence

from phi3_serve import overload
from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.engine.generation import Generation


class QueueAdmission:
    """The limits of an engine's queue, applied to each new request."""

    def __init__(self, limits: QueueLimits, *, max_rows: int) -> None:
        """``max_rows``: sequences that one step of the engine can run."""
        self.limits = limits  # may be replaced at any time
        self._max_rows = max_rows

    def check(self, newcomer: Generation, in_flight: Sequence[Generation]) -> None:
        """Raise Overloaded if ``newcomer`` does not fit into the queue beside the requests ``in_flight``."""
        limits = self.limits
        if self._num_waiting([*in_flight, newcomer]) > limits.requests:
            raise overload.queue_is_full(limits.requests)
        waiting = [len(g.request.prompt_ids) for g in in_flight if not g.is_running]
        if waiting and sum(waiting) + len(newcomer.request.prompt_ids) > limits.tokens:
            raise overload.waiting_prompts_are_too_long(sum(waiting), limits.tokens)

    def _num_waiting(self, generations: Sequence[Generation]) -> int:
        """How many of ``generations`` wait once all rows of a step are taken. The first one may take more rows."""
        num_rows = 0
        for number, generation in enumerate(generations):
            num_rows += generation.num_rows
            if number and num_rows > self._max_rows:
                return len(generations) - number
        return 0
