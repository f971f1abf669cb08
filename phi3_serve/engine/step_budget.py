"""How many tokens one step may run. Plain Python, no tensors."""

MIN_TOKENS = 64
GROW_AFTER_STEPS = 1000


class StepBudget:
    """A limit that falls when the device has no memory for a step, and rises again after many steps that fitted."""

    def __init__(self, most: int) -> None:
        """``most``: tokens of a step while the device has enough memory."""
        self.most = most
        self.limit = most
        self._num_fitting = 0  # steps since the limit changed

    def shrink(self, num_tokens: int) -> bool:
        """Halve the limit, because a step of ``num_tokens`` did not fit. False if it cannot fall any more."""
        self._num_fitting = 0
        least = min(MIN_TOKENS, self.most)
        smaller = max(least, min(num_tokens, self.limit) // 2)
        is_smaller = smaller < num_tokens
        self.limit = smaller
        return is_smaller

    def count_fitting_step(self) -> None:
        """Double the limit, up to ``most``, after ``GROW_AFTER_STEPS`` steps that fitted."""
        self._num_fitting += 1
        if self._num_fitting >= GROW_AFTER_STEPS:
            self._num_fitting = 0
            self.limit = min(self.most, 2 * self.limit)
