"""The accounts of the block manager under any order of events."""

from array import array

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from phi3_serve.engine.blocks import BLOCK_SIZE, NO_ROOM, ROOT, BlockManager, OutOfBlocks, Room
from phi3_serve.engine.sequence import BlockTable, Sequence

NUM_BLOCKS = 12


class Holder:
    """Somebody with blocks: a sequence, and the room it grows into."""

    def __init__(self, sequence: Sequence, room: Room) -> None:
        self.sequence = sequence
        self.room = room


class BlockAccounts(RuleBasedStateMachine):
    """Sequences come, grow, fork and go. What a block is said to hold has to be what was written into it last."""

    holders = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockManager(NUM_BLOCKS)
        self.living: list[Holder] = []
        self.written: dict[int, tuple[int, ...]] = {}  # block: all tokens up to the end of it

    @rule(
        target=holders,
        prompt=strategies.lists(strategies.integers(0, 1), min_size=1, max_size=5),
        room=strategies.integers(0, 8),
    )
    def come(self, prompt: list[int], room: int) -> Holder:
        """Each number of the prompt stands for a block of equal tokens, so that prefixes are often shared."""
        holder = Holder(Sequence([p for p in prompt for _ in range(BLOCK_SIZE)] + [9]), self.blocks.reserve(room))
        self.living.append(holder)
        holder.sequence.take_known_prefix(self.blocks)
        for number, block in enumerate(holder.sequence.table.blocks):
            assert self.written[block] == tuple(holder.sequence.tokens[: (number + 1) * BLOCK_SIZE])
        return holder

    @rule(holder=holders, new=strategies.integers(0, 20))
    def run(self, holder: Holder, new: int) -> None:
        """What the scheduler and the engine do in a step, blocks permitting."""
        if holder not in self.living:
            return
        sequence = holder.sequence
        sequence.tokens.extend([2] * new)
        try:
            if sequence.num_cached % BLOCK_SIZE and self.blocks.is_shared(sequence.table.blocks[-1]):
                own = self.blocks.allocate(holder.room)
                self.blocks.free(sequence.table.blocks[-1], holder.room)
                sequence.table.replace_last(own)
            for _ in range(sequence.num_blocks_short(sequence.num_pending - 1)):
                sequence.table.append(self.blocks.allocate(holder.room))
        except OutOfBlocks:
            sequence.drop(self.blocks, holder.room)
            return
        first = sequence.num_cached // BLOCK_SIZE
        sequence.num_cached = len(sequence) - 1
        for number in range(first, -(-sequence.num_cached // BLOCK_SIZE)):
            self.written[sequence.table.blocks[number]] = tuple(sequence.tokens[: (number + 1) * BLOCK_SIZE])
        sequence.make_known(self.blocks)

    @rule(target=holders, holder=holders)
    def fork(self, holder: Holder) -> Holder:
        if holder not in self.living:
            return holder
        twin = Holder(holder.sequence.fork(self.blocks), NO_ROOM)
        self.living.append(twin)
        return twin

    @rule(holder=holders)
    def go(self, holder: Holder) -> None:
        if holder in self.living:
            self.living.remove(holder)
            holder.sequence.drop(self.blocks, holder.room)
            self.blocks.release(holder.room)

    @precondition(lambda self: not self.living)
    @rule()
    def all_is_available_when_nobody_is_there(self) -> None:
        assert self.blocks.num_available == NUM_BLOCKS

    @invariant()
    def accounts_agree(self) -> None:
        self.blocks.check_integrity([holder.sequence.table.blocks for holder in self.living])


TestBlockAccounts = BlockAccounts.TestCase
TestBlockAccounts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_the_integrity_check_finds_each_kind_of_fault() -> None:
    def fresh() -> tuple[BlockManager, list[int]]:
        blocks = BlockManager(4)
        return blocks, [blocks.allocate(), blocks.allocate()]

    blocks, table = fresh()
    blocks.check_integrity([table])
    with pytest.raises(AssertionError, match=r"blocks \[1\]: held \[0\] times"):
        blocks.check_integrity([table[:1]])
    blocks._state[0] = 1
    with pytest.raises(AssertionError, match="block 0 is in state 1, but is held 1 times"):
        blocks.check_integrity([table])
    blocks, table = fresh()
    blocks.num_available = 3
    with pytest.raises(AssertionError, match="3 blocks are said to be available, 2 are"):
        blocks.check_integrity([table])
    blocks, table = fresh()
    blocks._known[ROOT, b""] = 0
    with pytest.raises(AssertionError, match="known prefixes"):
        blocks.check_integrity([table])
    blocks._state[3] = 3
    with pytest.raises(AssertionError, match="block 3 is said to hold a prefix"):
        blocks.check_integrity([table])


def test_room_is_adjacent_and_others_take_it_last() -> None:
    blocks = BlockManager(8)
    room = blocks.reserve(4)
    others = [blocks.allocate() for _ in range(4)]
    assert not set(others) & set(range(room.start, room.end))
    assert [blocks.allocate(room) for _ in range(3)] == [room.start, room.start + 1, room.start + 2]
    assert blocks.allocate() == room.end - 1
    with pytest.raises(OutOfBlocks):
        blocks.allocate(room)


def test_a_known_prefix_is_overwritten_only_when_nothing_else_is_free() -> None:
    blocks = BlockManager(3)
    block = blocks.allocate()
    number = blocks.make_known(block, ROOT, b"a")
    blocks.free(block)
    others = [blocks.allocate(), blocks.allocate()]
    assert block not in others
    assert blocks.take_known(ROOT, b"a") == (block, number)
    blocks.free(block)
    assert blocks.allocate() == block
    assert blocks.take_known(ROOT, b"a") is None


def test_without_a_prefix_cache_nothing_is_known() -> None:
    blocks = BlockManager(3, prefix_cache=False)
    blocks.make_known(blocks.allocate(), ROOT, b"a")
    assert blocks.take_known(ROOT, b"a") is None


def test_runs_and_spans_of_a_table() -> None:
    table = BlockTable([4, 5, 9, 2, 3])
    assert table.runs == [[4, 2], [9, 1], [2, 2]]
    assert table.spans(0, 80) == [slice(64, 96), slice(144, 160), slice(32, 64)]
    assert table.spans(20, 40) == [slice(84, 96), slice(144, 152)]
    table.replace_last(7)
    assert table.blocks == [4, 5, 9, 2, 7]
    assert table.spans(48, 80) == [slice(32, 48), slice(112, 128)]
    assert [table.slot(p) for p in (0, 33, 79)] == [64, 145, 127]


def test_a_prefix_of_long_rope_is_another_prefix() -> None:
    blocks = BlockManager(8)
    short = Sequence([1] * 33, long_from=40)
    short.take_known_prefix(blocks)
    short.table.append(blocks.allocate())
    short.num_cached = BLOCK_SIZE
    short.make_known(blocks)
    long = Sequence([1] * 50, long_from=40)
    long.take_known_prefix(blocks)
    assert long.num_cached == 0
    again = Sequence(array("q", [1] * 35), long_from=40)
    again.take_known_prefix(blocks)
    assert again.num_cached == BLOCK_SIZE
