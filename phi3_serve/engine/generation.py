"""One request on its way through the engine."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from phi3_serve.core.engine_event import EngineEvent
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import TokenLogprobs
from phi3_serve.engine.kvcache.block_manager import BlockManager
from phi3_serve.engine.sampling.strategies.base import Strategy
from phi3_serve.engine.stopwatch import Stopwatch


@dataclass(eq=False, slots=True)
class Generation:
    """A request, its strategy, and whether it runs or waits."""

    request: EngineRequest
    on_event: Callable[[EngineEvent], None]
    strategy: Strategy
    is_running: bool = False  # set by the scheduler
    num_starts: int = 0  # set by the scheduler; one more after each preemption
    announces_start: bool = False  # whether somebody waits for the event Started
    is_removed: bool = False  # set by the scheduler; a step that was launched before may still run
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # if requested, of the tokens from the second on

    def __post_init__(self) -> None:
        self._limit_reuse()

    @property
    def has_started(self) -> bool:
        """Whether the request runs, or has run before a preemption."""
        return self.num_starts > 0

    @property
    def num_unscored(self) -> int:
        """Tokens of the prompt whose log-probabilities are requested and missing."""
        if self.request.parameters.prompt_logprobs is None:
            return 0
        return len(self.request.prompt_ids) - 1 - len(self.prompt_logprobs)

    @property
    def unscored_ids(self) -> tuple[int, ...]:
        """The ids of these tokens. The logits of each are those of the token before it."""
        return self.request.prompt_ids[len(self.prompt_logprobs) + 1 :] if self.num_unscored else ()

    def score(self, logprobs: Iterable[TokenLogprobs]) -> None:
        """Add the log-probabilities of the next unscored tokens."""
        self.prompt_logprobs += logprobs
        self._limit_reuse()

    def _limit_reuse(self) -> None:
        """A token whose logits are needed must be run, although the prefix cache may have its keys."""
        for sequence in self.strategy.rows[:1]:  # none is left if the answer has ended with its first token
            sequence.num_reusable = len(self.prompt_logprobs) if self.num_unscored else math.inf

    @property
    def num_rows(self) -> int:
        """Sequences that a decode step runs."""
        return self.strategy.num_rows * (2 if self.strategy.negative_prompt_rows else 1)

    @property
    def awaits_last_token(self) -> bool:
        """Whether the maximum length is reached by tokens that are chosen but unread."""
        rows = self.strategy.rows
        return rows[0].num_unread > 0 and len(rows[0]) >= self.request.max_length

    @property
    def num_draftable(self) -> int:
        """How many tokens the next step may draft; 0 if the request asks for no drafts or does not decode."""
        count = self.request.parameters.prompt_lookup_num_tokens
        if count is None or self.num_pending != 1 or self.strategy.negative_prompt_rows:
            return 0
        (sequence,) = self.strategy.rows
        return max(0, min(count, self.request.max_length - len(sequence) - 1, sequence.draft_capacity()))

    @property
    def num_pending(self) -> int:
        """Tokens to run before the next tokens can be chosen, without drafted tokens."""
        return sum(sequence.num_pending for sequence in self.strategy.sequences)

    @property
    def num_cached(self) -> int:
        """Tokens of all sequences whose keys are cached; those of a shared prefix count for each."""
        return sum(sequence.num_cached for sequence in self.strategy.sequences)

    def num_missing_blocks(self, max_held: int) -> int:
        """Blocks that all pending tokens still need. Sequences share the blocks of a common prefix.

        ``max_held``: blocks that one sequence holds at most, because it gives back those behind the sliding window.
        """
        num_missing = 0
        for sequences in self.strategy.sequences_by_prompt:
            for index, sequence in enumerate(sequences):
                of_sequence = sequence.num_missing_blocks(sequence.num_pending)
                if index and sequence.has_no_cached_tokens:
                    of_sequence -= sequence.num_common_blocks(sequences[index - 1])
                num_missing += min(of_sequence, max_held - len(sequence.held_blocks))
        return num_missing

    def release(self, blocks: BlockManager) -> None:
        """Free all blocks."""
        self.strategy.release(blocks)
