"""The accounts of the block manager under any order of events."""

from array import array

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager, OutOfBlocks, PrefixRoot
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence, num_unseen_blocks
from phi3_serve.engine.kvcache.slots import cache_slots

NUM_BLOCKS = 12
WINDOWS = strategies.integers(1, 60)
ROOT = PrefixRoot()


class BlockAccounts(RuleBasedStateMachine):
    """Sequences come, grow, fork and go. What a block is said to hold has to be what was written into it last."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(NUM_BLOCKS)
        self.living: list[CachedSequence] = []
        self.written: dict[int, tuple[int, ...]] = {}  # block: all tokens up to the end of it

    @rule(target=sequences, prompt=strategies.lists(strategies.integers(0, 1), min_size=1, max_size=5))
    def come(self, prompt: list[int]) -> CachedSequence:
        """Each number of the prompt stands for a block of equal tokens, so that prefixes are often shared."""
        sequence = CachedSequence([p for p in prompt for _ in range(BLOCK_SIZE)] + [9])
        self.living.append(sequence)
        sequence.acquire_prefix(self.blocks)
        for number, block in enumerate(sequence.block_table):
            assert self.written[block] == tuple(sequence.tokens[: (number + 1) * BLOCK_SIZE])
        return sequence

    @rule(sequence=sequences, new=strategies.integers(0, 20))
    def run(self, sequence: CachedSequence, new: int) -> None:
        """What the scheduler and the engine do in a step, blocks permitting."""
        if sequence not in self.living:
            return
        sequence.tokens.extend([2] * new)
        try:
            if sequence.num_cached % BLOCK_SIZE and self.blocks.is_shared(sequence.block_table[-1]):
                own = self.blocks.allocate()
                self.blocks.free(sequence.block_table[-1])
                sequence.block_table[-1] = own
            for _ in range(sequence.num_missing_blocks(sequence.num_pending - 1)):
                sequence.block_table.append(self.blocks.allocate())
        except OutOfBlocks:
            sequence.release(self.blocks)
            return
        first = sequence.num_cached // BLOCK_SIZE
        sequence.num_cached = len(sequence) - 1
        for number in range(first, -(-sequence.num_cached // BLOCK_SIZE)):
            self.written[sequence.block_table[number]] = tuple(sequence.tokens[: (number + 1) * BLOCK_SIZE])
        sequence.publish_prefix(self.blocks)

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: CachedSequence) -> CachedSequence:
        if sequence not in self.living:
            return sequence
        twin = sequence.fork(self.blocks)
        self.living.append(twin)
        return twin

    @rule(sequence=sequences, window=WINDOWS)
    def move_the_window(self, sequence: CachedSequence, window: int) -> None:
        if sequence in self.living:
            sequence.free_unseen_blocks(self.blocks, sequence.num_cached, window)
            assert sequence.num_freed >= (sequence.num_cached - window + 1) // BLOCK_SIZE
            assert sequence.num_freed * BLOCK_SIZE <= sequence.num_cached

    @rule(sequence=sequences, other=sequences, window=WINDOWS)
    def restart_beside(self, sequence: CachedSequence, other: CachedSequence, window: int) -> None:
        if sequence not in self.living or other not in self.living or sequence is other:
            return
        sequence.release(self.blocks)
        sequence.share_prefix(other, self.blocks, window)
        assert sequence.num_freed == num_unseen_blocks(sequence.num_cached, window)

    @rule(sequence=sequences)
    def go(self, sequence: CachedSequence) -> None:
        if sequence in self.living:
            self.living.remove(sequence)
            sequence.release(self.blocks)

    @precondition(lambda self: not self.living)
    @rule()
    def all_is_available_when_nobody_is_there(self) -> None:
        assert self.blocks.num_available == NUM_BLOCKS

    @invariant()
    def accounts_agree(self) -> None:
        self.blocks.check_integrity([sequence.held_blocks for sequence in self.living])

    @invariant()
    def held_blocks_have_the_right_tokens(self) -> None:
        for sequence in self.living:
            for number in range(sequence.num_freed, sequence.num_cached // BLOCK_SIZE):
                assert self.written[sequence.block_table[number]] == tuple(sequence.tokens[: (number + 1) * BLOCK_SIZE])


TestBlockAccounts = pytest.mark.thorough(BlockAccounts.TestCase)
TestBlockAccounts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_integrity_check_finds_each_kind_of_fault() -> None:
    def fresh() -> tuple[BlockManager, list[int]]:
        blocks = BlockManager(4)
        return blocks, [blocks.allocate(), blocks.allocate()]

    blocks, table = fresh()
    blocks.check_integrity([table])
    with pytest.raises(AssertionError, match=r"blocks \[1\]: references \(recorded, counted\) are \[\(1, 0\)\]"):
        blocks.check_integrity([table[:1]])
    blocks._is_free[0] = True
    with pytest.raises(AssertionError, match=r"block 0: \(used, free, idle\) is \(True, True, False\)"):
        blocks.check_integrity([table])
    blocks, table = fresh()
    blocks._num_used = 1
    with pytest.raises(AssertionError, match="available blocks: 3 recorded, 2 counted"):
        blocks.check_integrity([table])
    blocks, table = fresh()
    blocks._published[ROOT, b""] = 0
    with pytest.raises(AssertionError, match="published prefixes"):
        blocks.check_integrity([table])
    blocks._is_free[3], blocks._idle[3] = False, None
    with pytest.raises(AssertionError, match="block 3: idle without a published prefix"):
        blocks.check_integrity([table])


def test_a_published_prefix_is_overwritten_only_when_nothing_else_is_free() -> None:
    blocks = BlockManager(3)
    block = blocks.allocate()
    number = blocks.publish_prefix(block, ROOT, b"a")
    blocks.free(block)
    others = [blocks.allocate(), blocks.allocate()]
    assert block not in others
    assert blocks.acquire_prefix(ROOT, b"a") == (block, number)
    blocks.free(block)
    assert blocks.allocate() == block
    assert blocks.acquire_prefix(ROOT, b"a") is None


def test_without_a_prefix_cache_nothing_is_published() -> None:
    blocks = BlockManager(3, prefix_cache=False)
    blocks.publish_prefix(blocks.allocate(), ROOT, b"a")
    assert blocks.acquire_prefix(ROOT, b"a") is None


def test_the_least_recently_used_prefix_is_overwritten_first() -> None:
    blocks = BlockManager(3)
    held = [blocks.allocate() for _ in range(3)]
    for block, name in zip(held, (b"a", b"b", b"c"), strict=True):
        blocks.publish_prefix(block, ROOT, name)
    for block in (held[1], held[0], held[2]):
        blocks.free(block)
    assert blocks.acquire_prefix(ROOT, b"b") is not None  # used again, so it is the last in line
    blocks.free(held[1])
    assert [blocks.allocate() for _ in range(3)] == [held[0], held[2], held[1]]
    with pytest.raises(OutOfBlocks):
        blocks.allocate()


def test_blocks_behind_the_window_are_freed() -> None:
    """Position 47 sees [30, 47] in a window of 18, so block 1 with [16, 31] stays; position 50 sees [33, 50]."""
    blocks = BlockManager(4)
    sequence = CachedSequence([1] * 60)
    sequence.block_table.extend(blocks.allocate() for _ in range(4))
    sequence.num_cached = 59
    sequence.free_unseen_blocks(blocks, 47, 18)
    assert (list(sequence.held_blocks), sequence.num_freed, blocks.num_available) == ([1, 2, 3], 1, 1)
    sequence.free_unseen_blocks(blocks, 48, 18)
    assert sequence.num_freed == 1
    sequence.free_unseen_blocks(blocks, 49, 18)
    assert (list(sequence.block_table), sequence.num_freed, blocks.num_available) == ([0, 0, 2, 3], 2, 2)
    assert sequence.num_missing_blocks(6) == 1
    twin = sequence.fork(blocks)
    blocks.check_integrity([sequence.held_blocks, twin.held_blocks])
    sequence.release(blocks)
    twin.release(blocks)
    assert blocks.num_available == 4


def test_a_prefix_with_freed_blocks_is_shared_only_if_its_window_is_held() -> None:
    blocks = BlockManager(8)
    older = CachedSequence([1] * 100)
    older.block_table.extend(blocks.allocate() for _ in range(7))
    older.num_cached = 99
    older.free_unseen_blocks(blocks, 80, 33)  # [48, 80] is seen, so three blocks are freed
    younger = CachedSequence([1] * 81 + [2])
    younger.share_prefix(older, blocks, 33)
    assert (younger.num_cached, younger.num_freed) == (80, 3)
    younger.release(blocks)
    older.free_unseen_blocks(blocks, 96, 33)
    younger.share_prefix(older, blocks, 33)
    assert (younger.num_cached, len(younger.block_table)) == (0, 0)
    blocks.check_integrity([older.held_blocks])


def test_published_blocks_behind_the_window_are_found_again() -> None:
    blocks = BlockManager(6)
    first = CachedSequence([1] * 70)
    first.block_table.extend(blocks.allocate() for _ in range(5))
    first.num_cached = 69
    first.publish_prefix(blocks)
    first.free_unseen_blocks(blocks, 69, 20)
    assert (first.num_freed, blocks.num_available) == (3, 4)
    second = CachedSequence([1] * 70)
    second.acquire_prefix(blocks)
    assert list(second.block_table) == [0, 1, 2, 3]
    second.free_unseen_blocks(blocks, second.num_cached, 20)
    assert list(second.held_blocks) == [2, 3]
    assert blocks.num_available == 3  # block 3 is held by both


def test_nothing_is_published_after_an_unpublished_block_is_freed() -> None:
    blocks = BlockManager(6)
    sequence = CachedSequence([1] * 70)
    sequence.block_table.extend(blocks.allocate() for _ in range(5))
    sequence.num_cached = 69
    sequence.free_unseen_blocks(blocks, 69, 20)
    sequence.publish_prefix(blocks)
    other = CachedSequence([1] * 70)
    other.acquire_prefix(blocks)
    assert other.num_cached == 0


def test_where_a_token_lies() -> None:
    sequence = CachedSequence([1])
    sequence.block_table.extend([4, 5, 9])
    assert [sequence.slot(position) for position in (0, 15, 16, 33)] == [64, 79, 80, 145]
    assert cache_slots(sequence.block_table, 14, 34).tolist() == [78, 79, *range(80, 96), 144, 145]


def test_a_prefix_of_long_rope_is_another_prefix() -> None:
    blocks = BlockManager(8)
    short = CachedSequence([1] * 33, long_factors_from=40)
    short.acquire_prefix(blocks)
    short.block_table.append(blocks.allocate())
    short.num_cached = BLOCK_SIZE
    short.publish_prefix(blocks)
    long = CachedSequence([1] * 50, long_factors_from=40)
    long.acquire_prefix(blocks)
    assert long.num_cached == 0
    again = CachedSequence(array("q", [1] * 35), long_factors_from=40)
    again.acquire_prefix(blocks)
    assert again.num_cached == BLOCK_SIZE
