"""What the next step runs: decoding requests first, then prompts in order of arrival, then drafts, within a budget.

Plain Python, no tensors. If a request gets no block, the youngest running request is preempted: it keeps its tokens,
and its keys are computed again later (preemption by recompute). The oldest request is never preempted, so every
request finishes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager, OutOfBlocks
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.step_budget import StepBudget


@dataclass(slots=True)
class Plan:
    """One step. Blocks are copied before the chunks run, and the chunks run in their order."""

    chunks: dict[Generation, list[Chunk]] = field(default_factory=dict)
    copies: dict[Generation, list[tuple[int, int]]] = field(default_factory=dict)  # blocks (from, to)
    started: list[Generation] = field(default_factory=list)  # requests that waited before this step
    ready: list[Generation] = field(default_factory=list)  # requests whose next tokens are chosen in this step
    rejected: list[Generation] = field(default_factory=list)  # requests that do not fit into the whole cache
    num_tokens_left: int = 0  # of the budget
    is_committed: bool = False

    @property
    def all_chunks(self) -> list[Chunk]:
        """The chunks of all requests."""
        return [chunk for chunks in self.chunks.values() for chunk in chunks]

    @property
    def all_copies(self) -> list[tuple[int, int]]:
        """The copies of all requests."""
        return [copy for copies in self.copies.values() for copy in copies]

    def remove(self, generation: Generation) -> None:
        """Do not run ``generation``."""
        self.chunks.pop(generation, None)
        self.copies.pop(generation, None)
        if generation in self.ready:
            self.ready.remove(generation)


class AdapterTier(Protocol):
    """Where adapters are while requests run with them."""

    def can_start(self, adapters: Sequence[AppliedAdapter], running: Iterable[AppliedAdapter]) -> bool:
        """Whether a request with ``adapters`` can run beside those that run with ``running``; if not, ask again."""


class Scheduler:
    """The waiting requests, the running requests, and the blocks that they share."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        token_budget: int,
        max_rows: int,
        window: int | None = None,
        adapters: AdapterTier | None = None,
    ) -> None:
        """``window``: how many keys a query sees, its own included; None: all.

        ``adapters``: where those of running requests have to be; None: wherever they are.
        """
        self.blocks = blocks
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # oldest first
        self.budget = StepBudget(max(token_budget, max_rows))
        self.num_preemptions = 0
        self._max_rows = max_rows
        self._window = window
        self._adapters = adapters

    @property
    def has_work(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, generation: Generation) -> None:
        """Queue ``generation``."""
        self.waiting.append(generation)

    def remove(self, generation: Generation) -> None:
        """Forget ``generation`` and free its blocks. A generation that is already removed is ignored."""
        if generation in self.running:
            self.running.remove(generation)
        elif generation in self.waiting:
            self.waiting.remove(generation)
        generation.is_removed = True
        generation.release(self.blocks)

    def preempt_youngest(self, plan: Plan) -> Generation:
        """Stop the youngest running request; it waits in front of the queue without any block."""
        generation = self.running[-1]
        plan.remove(generation)
        self._preempt(generation)
        return generation

    def _preempt(self, generation: Generation) -> None:
        self.running.remove(generation)
        generation.release(self.blocks)
        generation.is_running = False
        self.num_preemptions += 1
        self.waiting.appendleft(generation)

    def retreat(self, plan: Plan) -> Generation | None:
        """Preempt all requests of ``plan``, for which the device had no memory, and plan smaller steps from now on.

        Returns the largest request if steps cannot become smaller: it has to fail.
        """
        num_tokens = {g: sum(chunk.num_tokens for chunk in chunks) for g, chunks in plan.chunks.items()}
        is_smaller = self.budget.shrink(sum(num_tokens.values()))
        largest = max(num_tokens, key=lambda g: (num_tokens[g], g.num_cached))
        for generation in [g for g in reversed(self.running) if g in num_tokens]:
            self._preempt(generation)
        return None if is_smaller else largest

    def schedule(self) -> Plan:
        """Plan the next step."""
        plan = Plan()
        self._restart_at_rope_crossing()
        for generation in self.running:
            self._free_behind_window(generation)
        budget = self.budget.limit
        for generation in self._decoding_first():
            if generation in self.running:  # not preempted by an older one
                budget -= self._run(generation, budget, plan)
        while self.waiting and budget > 0 and self._start_next():
            plan.started.append(self.running[-1])
            budget -= self._run(self.running[-1], budget, plan)
        plan.num_tokens_left = budget
        return plan

    def add_draft(self, plan: Plan, generation: Generation, draft: tuple[int, ...]) -> None:
        """Run ``draft``, or as much of it as fits into the available blocks, after the last token of ``generation``.

        The budget is not checked. A draft preempts no request.
        """
        (sequence,) = generation.strategy.rows
        num_more = min(len(draft), sequence.num_writable(self.blocks.num_available) - 1)
        sequence.draft = draft[:num_more]
        for _ in range(sequence.num_missing_blocks(1 + num_more)):
            sequence.block_table.append(self.blocks.allocate())
        plan.chunks[generation] = [Chunk(sequence, 1 + num_more, 1 + num_more)]
        plan.num_tokens_left -= num_more

    def commit(self, plan: Plan) -> None:
        """Count the tokens of ``plan`` as cached, and let other requests find their blocks. Call it once they run.

        Later steps may then read the blocks, because a device runs its steps in their order.
        """
        plan.is_committed = True
        self.budget.count_fitting_step()
        for chunk in plan.all_chunks:
            chunk.sequence.num_cached = chunk.end
            chunk.sequence.publish_prefix(self.blocks)

    def _restart_at_rope_crossing(self) -> None:
        """Free the keys of sequences whose next step takes the long RoPE factors."""
        for generation in self.running:
            crossing = [sequence for sequence in generation.strategy.rows if sequence.must_recompute()]
            for sequence in crossing:
                sequence.release(self.blocks)
            if crossing:
                crossing[0].acquire_prefix(self.blocks)  # the others share it: _restart_from_shared_prefix

    def _free_behind_window(self, generation: Generation) -> None:
        """Free the blocks that no later query sees, except those that a preempted sequence will share."""
        if self._window is None:
            return
        for sequences in generation.strategy.sequences_by_prompt:
            next_query = {sequence: sequence.num_cached for sequence in sequences}
            for index, sequence in enumerate(sequences):
                if index and sequence.has_no_cached_tokens:
                    older = _closest(sequence, sequences[:index])
                    start = sequence.num_common_blocks(older) * BLOCK_SIZE
                    if start > len(sequence) - self._window:  # its last token sees some of the shared blocks
                        next_query[older] = min(next_query[older], start)
            for sequence, position in next_query.items():
                sequence.free_unseen_blocks(self.blocks, position, self._window)

    @property
    def _max_held_blocks(self) -> int:
        """Blocks that one sequence holds at most: those of its window and of one step."""
        if self._window is None:
            return self.blocks.num_blocks
        return (self._window + self.budget.most) // BLOCK_SIZE + 2

    def _decoding_first(self) -> list[Generation]:
        due = [g for g in self.running if not g.awaits_last_token]
        return sorted(due, key=lambda g: not _is_decoding(g))

    def _start_next(self) -> bool:
        """Start the first waiting request; return False if it has to wait.

        It waits until its tokens fit into the available blocks and its adapters beside those of running requests, and
        while a running request computes its prefix.
        """
        generation = self.waiting[0]
        num_rows = generation.num_rows + sum(g.num_rows for g in self.running)
        has_adapters = self._has_adapters(generation)
        if self.running and (num_rows > self._max_rows or not has_adapters):
            return False
        for sequences in generation.strategy.sequences_by_prompt:
            if sequences:
                sequences[0].acquire_prefix(self.blocks)
        self._free_behind_window(generation)
        num_needed = generation.num_missing_blocks(self._max_held_blocks) + num_rows  # each row may soon need one more
        must_wait = num_needed > self.blocks.num_available or self._is_prefix_underway(generation)
        if must_wait and self.running:
            generation.release(self.blocks)
            return False
        self.running.append(self.waiting.popleft())
        generation.is_running = True
        generation.num_starts += 1
        generation.stopwatch.note_start()
        return True

    def _has_adapters(self, generation: Generation) -> bool:
        if self._adapters is None or not generation.request.adapters:
            return True
        running = [applied for g in self.running for applied in g.request.adapters]
        return self._adapters.can_start(generation.request.adapters, running)

    def _is_prefix_underway(self, generation: Generation) -> bool:
        """Whether running requests compute blocks that ``generation`` would compute, too."""
        firsts = [sequences[0] for sequences in generation.strategy.sequences_by_prompt if sequences]
        return self.blocks.has_prefix_cache and any(
            first.has_prefix_underway(other)
            for running in self.running
            for other in running.strategy.sequences
            if other.num_pending > 1
            for first in firsts
        )

    def _run(self, generation: Generation, budget: int, plan: Plan) -> int:
        """Plan as many tokens of ``generation`` as fit; returns their number."""
        is_complete = self._fits_completely(generation, budget)
        if not is_complete and _is_decoding(generation):
            return 0
        used = 0
        for sequences in generation.strategy.sequences_by_prompt:
            for index, sequence in enumerate(sequences):
                must_share_prefix = index > 0 and sequence.has_no_cached_tokens
                if must_share_prefix and not self._restart_from_shared_prefix(sequence, sequences[:index]):
                    break
                count = sequence.num_pending if is_complete else min(sequence.num_pending - 1, budget - used)
                if count <= 0:
                    continue
                if not self._reserve_blocks(generation, sequence, count, plan):
                    return 0
                chunk = _chunk(generation, sequence, count, is_complete=is_complete)
                plan.chunks.setdefault(generation, []).append(chunk)
                used += count
        if is_complete:
            plan.ready.append(generation)
        return used

    def _fits_completely(self, generation: Generation, budget: int) -> bool:
        """Whether all pending tokens fit, so that the next tokens can be chosen."""
        if any(later.has_no_cached_tokens for group in generation.strategy.sequences_by_prompt for later in group[1:]):
            return False  # these share a prefix that has to be cached first
        return generation.num_pending <= budget

    def _restart_from_shared_prefix(self, sequence: CachedSequence, older: list[CachedSequence]) -> bool:
        """Start a preempted ``sequence`` from the prefix that it shares with an ``older`` one of its request.

        So a request with many sequences needs no more blocks after a preemption than before. Returns False if the
        older sequences are not cached yet.
        """
        if older[-1].num_pending > 1:
            return False
        sequence.share_prefix(_closest(sequence, older), self.blocks, self._window)
        return True

    def _reserve_blocks(self, generation: Generation, sequence: CachedSequence, num_tokens: int, plan: Plan) -> bool:
        """Give ``sequence`` the blocks for its next tokens; preempt younger requests if necessary.

        Returns False if ``generation`` itself was preempted or rejected.
        """
        while True:
            try:
                self._allocate_blocks(generation, sequence, num_tokens, plan)
                return True
            except OutOfBlocks:
                if self.running == [generation]:
                    plan.rejected.append(generation)
                    plan.remove(generation)
                    self.remove(generation)
                    return False
                if self.preempt_youngest(plan) is generation:
                    return False

    def _allocate_blocks(self, generation: Generation, sequence: CachedSequence, num_tokens: int, plan: Plan) -> None:
        table, blocks = sequence.block_table, self.blocks
        if sequence.num_cached % BLOCK_SIZE and blocks.is_shared(last := table[-1]):
            own = blocks.allocate()
            plan.copies.setdefault(generation, []).append((last, own))
            blocks.free(last)
            table[-1] = own
        for _ in range(sequence.num_missing_blocks(num_tokens)):
            table.append(blocks.allocate())


def _chunk(generation: Generation, sequence: CachedSequence, count: int, *, is_complete: bool) -> Chunk:
    """The next ``count`` tokens; the logits of the last one are needed if all tokens of the request are run."""
    num_prompt_logits = 0
    if generation.num_unscored and sequence is generation.strategy.rows[0]:
        first = len(generation.prompt_logprobs)  # the position whose logits score the next token
        end = min(sequence.num_cached + count, sequence.num_prompt_tokens - 1)
        num_prompt_logits = max(0, end - max(first, sequence.num_cached))
    return Chunk(sequence, count, num_prompt_logits + int(is_complete), num_prompt_logits)


def _closest(sequence: CachedSequence, others: list[CachedSequence]) -> CachedSequence:
    """The one of ``others`` that has the longest prefix in common with ``sequence``."""
    return max(others, key=sequence.num_common_blocks)


def _is_decoding(generation: Generation) -> bool:
    return all(sequence.num_pending == 1 for sequence in generation.strategy.sequences)
