"""What runs in the next step: decode first, then prompts in the order they came, within a budget of tokens.

Plain Python, no tensors. Requests that cannot get a block push out the youngest, whose tokens are kept and whose
keys are computed again later (preemption by recompute). The oldest is never pushed out, so none starves.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager, OutOfBlocks
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.kvcache.sequence import Sequence


@dataclass(slots=True)
class Plan:
    """One step: chunks by request, in the order they are run in, and the blocks to copy before."""

    chunks: dict[Generation, list[Chunk]] = field(default_factory=dict)
    copies: dict[Generation, list[tuple[int, int]]] = field(default_factory=dict)  # (from, to)
    ready: list[Generation] = field(default_factory=list)  # whose next tokens can be chosen after it
    rejected: list[Generation] = field(default_factory=list)  # that the memory can never hold

    def remove(self, generation: Generation) -> None:
        """Do not run ``generation``."""
        self.chunks.pop(generation, None)
        self.copies.pop(generation, None)
        if generation in self.ready:
            self.ready.remove(generation)

    def all_chunks(self) -> Iterator[Chunk]:
        """The chunks in order."""
        for chunks in self.chunks.values():
            yield from chunks


class Scheduler:
    """The queue, the running requests, and the blocks they share."""

    def __init__(self, blocks: BlockManager, *, token_budget: int, max_rows: int) -> None:
        self.blocks = blocks
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []  # oldest first
        self._token_budget = max(token_budget, max_rows)
        self._max_rows = max_rows

    @property
    def has_work(self) -> bool:
        """Whether a step would run anything."""
        return bool(self.waiting or self.running)

    def add(self, generation: Generation) -> None:
        """Queue ``generation``."""
        self.waiting.append(generation)

    def remove(self, generation: Generation) -> None:
        """Forget ``generation`` and free what it holds."""
        if generation in self.running:
            self.running.remove(generation)
        else:
            self.waiting.remove(generation)
        generation.drop(self.blocks)

    def schedule(self) -> Plan:
        """The next step."""
        plan = Plan()
        self._follow_crossings()
        budget = self._token_budget
        decoding = [g for g in self.running if all(s.num_pending == 1 for s in g.decoding.sequences)]
        prefilling = [g for g in self.running if g not in set(decoding)]
        for generation in [*decoding, *prefilling]:
            if generation in self.running:  # not pushed out by an older one
                budget -= self._run(generation, budget, plan)
        while self.waiting and budget > 0 and self._admit():
            budget -= self._run(self.running[-1], budget, plan)
        return plan

    def _follow_crossings(self) -> None:
        for generation in self.running:
            crossing = [sequence for sequence in generation.decoding.rows if sequence.crosses()]
            for sequence in crossing:
                sequence.drop(self.blocks)
            if crossing:
                crossing[0].take_known_prefix(self.blocks)  # the others follow it, see _warm

    def _admit(self) -> bool:
        """Let the first of the queue run, if its tokens fit into the memory that is free."""
        generation = self.waiting[0]
        num_rows = generation.num_rows + sum(g.num_rows for g in self.running)
        if self.running and num_rows > self._max_rows:
            return False
        for family in generation.decoding.families:
            if family:
                family[0].take_known_prefix(self.blocks)
        needed = generation.num_blocks_short + num_rows  # each may soon need one more
        if needed > self.blocks.num_available and self.running:
            generation.drop(self.blocks)
            return False
        self.running.append(self.waiting.popleft())
        generation.is_running = generation.has_begun = True
        return True

    def _run(self, generation: Generation, budget: int, plan: Plan) -> int:
        """Put what fits of ``generation`` into the plan; the tokens that takes."""
        num_drafted = sum(len(s.draft) for s in generation.decoding.sequences)
        if generation.num_pending + num_drafted > budget:
            num_drafted = 0
            for sequence in generation.decoding.sequences:
                sequence.draft = ()
        is_warm = not any(s.is_cold for family in generation.decoding.families for s in family[1:])
        is_whole = is_warm and generation.num_pending + num_drafted <= budget
        if not is_whole and all(s.num_pending == 1 for s in generation.decoding.sequences):
            return 0
        used = 0
        for family in generation.decoding.families:
            for at, sequence in enumerate(family):
                if at and sequence.is_cold and not self._warm(sequence, family[:at]):
                    break
                count = (
                    sequence.num_pending + len(sequence.draft)
                    if is_whole
                    else min(sequence.num_pending - 1, budget - used)
                )
                if count <= 0:
                    continue
                if not self._secure(generation, sequence, count, plan):
                    return 0
                num_logits = 1 + len(sequence.draft) if is_whole else 0
                plan.chunks.setdefault(generation, []).append(Chunk(sequence, count, num_logits))
                used += count
        if is_whole:
            plan.ready.append(generation)
        return used

    def _warm(self, sequence: Sequence, elder: list[Sequence]) -> bool:
        """Start a pushed-out ``sequence`` again from what it shares with its ``elder``; False until they are cached.

        So a request of many sequences needs no more memory after it was pushed out than before.
        """
        if elder[-1].num_pending > 1:
            return False
        sequence.take_prefix_of(max(elder, key=sequence.num_common_blocks), self.blocks)
        return True

    def _secure(self, generation: Generation, sequence: Sequence, num_tokens: int, plan: Plan) -> bool:
        """Give ``sequence`` blocks of its own for its next tokens, pushing out younger requests if need be."""
        while True:
            try:
                self._give_blocks(generation, sequence, num_tokens, plan)
                return True
            except OutOfBlocks:
                youngest = self.running[-1]
                if youngest is generation and len(self.running) == 1:
                    plan.rejected.append(generation)
                    plan.remove(generation)
                    self.remove(generation)
                    return False
                self._preempt(youngest, plan)
                if youngest is generation:
                    return False

    def _give_blocks(self, generation: Generation, sequence: Sequence, num_tokens: int, plan: Plan) -> None:
        table, blocks = sequence.table, self.blocks
        if sequence.num_cached % BLOCK_SIZE and blocks.is_shared(last := table[-1]):
            own = blocks.allocate()
            plan.copies.setdefault(generation, []).append((last, own))
            blocks.free(last)
            table[-1] = own
        for _ in range(sequence.num_blocks_short(num_tokens)):
            table.append(blocks.allocate())

    def _preempt(self, generation: Generation, plan: Plan) -> None:
        plan.remove(generation)
        self.running.remove(generation)
        generation.drop(self.blocks)
        generation.is_running = False
        self.waiting.appendleft(generation)
