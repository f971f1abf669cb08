"""The blocks of the key-value cache: who holds which, which are free, which still hold a known prefix.

Plain Python, no tensors. Paged as in Kwon et al. 2023, PagedAttention, https://arxiv.org/abs/2309.06180, with one
thing more: a request gets *room to grow*, a run of adjacent blocks that others take only when nothing else is
left. Its blocks then lie side by side, and attention on a CPU reads them in place instead of gathering them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_SIZE = 16  # tokens

USED, FREE, ROOM, CACHED = range(4)  # ROOM: free, in somebody's room; CACHED: free, with a known prefix in it
_AVAILABLE_AS_FREE = bytes([USED, FREE, USED, FREE, *range(4, 256)])
MIN_ROOM = 4  # blocks; below this adjacency is not worth a search

ROOT = 0  # the prefix before all prefixes


class OutOfBlocks(Exception):
    """No block is free."""


@dataclass(frozen=True, slots=True)
class Room:
    """The blocks [start, end) that a request grows into."""

    start: int
    end: int


NO_ROOM = Room(0, 0)


class BlockManager:
    """Reference counts, room and known prefixes of ``num_blocks`` blocks."""

    def __init__(self, num_blocks: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.num_available = num_blocks
        self._state = bytearray([FREE]) * num_blocks
        self._references = [0] * num_blocks
        self._prefix_cache = prefix_cache
        self._next_room = 0  # rooms go round, so that the oldest prefixes are overwritten first
        # A known prefix is its parent's number and the bytes of its last block of token ids.
        self._known: dict[tuple[int, bytes], int] = {}
        self._content: dict[int, tuple[tuple[int, bytes], int]] = {}  # block: (its key in _known, its number)
        self._next_number = ROOT + 2  # ROOT and ROOT + 1 are taken: see Sequence.root

    def reserve(self, num_blocks: int) -> Room:
        """Room for ``num_blocks``, or for as many adjacent ones as can be had."""
        available = self._state.translate(_AVAILABLE_AS_FREE)
        while num_blocks >= MIN_ROOM:
            start = available.find(bytes([FREE]) * num_blocks, self._next_room)
            if start < 0:
                start = available.find(bytes([FREE]) * num_blocks)
            if start >= 0:
                room = Room(start, start + num_blocks)
                self._state[start : room.end] = self._state[start : room.end].replace(bytes([FREE]), bytes([ROOM]))
                self._next_room = room.end % self.num_blocks
                return room
            num_blocks //= 2
        return NO_ROOM

    def release(self, room: Room) -> None:
        """Let others have what is left of ``room``."""
        self._state[room.start : room.end] = self._state[room.start : room.end].replace(bytes([ROOM]), bytes([FREE]))

    def allocate(self, room: Room = NO_ROOM) -> int:
        """A block, the first free one of ``room`` if there is one, with one reference.

        Raises:
            OutOfBlocks: every block is used.
        """
        block = self._find(room)
        if block < 0:
            raise OutOfBlocks
        self._forget(block)
        self._state[block] = USED
        self._references[block] = 1
        self.num_available -= 1
        return block

    def _find(self, room: Room) -> int:
        in_room = [self._state.find(kind, room.start, room.end) for kind in (ROOM, CACHED)]
        if found := [block for block in in_room if block >= 0]:
            return min(found)
        for kind in (FREE, CACHED):
            if (block := self._state.find(kind)) >= 0:
                return block
        return self._state.rfind(ROOM)  # the far end of somebody's room, which they may never need

    def share(self, block: int) -> None:
        """One more reference to a used block."""
        self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether writing into ``block`` would change what another sequence reads."""
        return self._references[block] > 1

    def free(self, block: int, room: Room = NO_ROOM) -> None:
        """One reference less; with the last one the block is free, and a known prefix stays findable in it."""
        self._references[block] -= 1
        if self._references[block]:
            return
        in_room = room.start <= block < room.end
        self._state[block] = CACHED if block in self._content else ROOM if in_room else FREE
        self.num_available += 1

    def take_known(self, parent: int, token_bytes: bytes) -> tuple[int, int] | None:
        """The block with the keys of these tokens after the prefix ``parent``, one reference more, and its number."""
        block = self._known.get((parent, token_bytes))
        if block is None:
            return None
        if self._state[block] != USED:
            self._state[block] = USED
            self.num_available -= 1
        self._references[block] += 1
        return block, self._content[block][1]

    def make_known(self, block: int, parent: int, token_bytes: bytes) -> int:
        """Let others find ``block`` by its tokens; the number of the prefix that ends with it."""
        if not self._prefix_cache:
            return ROOT
        key = (parent, token_bytes)
        if (known := self._known.get(key)) is not None:
            return self._content[known][1]
        number, self._next_number = self._next_number, self._next_number + 1
        self._known[key] = block
        self._content[block] = (key, number)
        return number

    def _forget(self, block: int) -> None:
        if (content := self._content.pop(block, None)) is not None:
            del self._known[content[0]]

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """AssertionError unless the accounts agree with each other and with ``tables``, all block tables there are."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counted[block] += 1
        if counted != self._references:
            wrong = [b for b in range(self.num_blocks) if counted[b] != self._references[b]]
            raise AssertionError(f"blocks {wrong}: held {[counted[b] for b in wrong]} times, accounts differ")
        for block, state in enumerate(self._state):
            if (state == USED) != (counted[block] > 0):
                raise AssertionError(f"block {block} is in state {state}, but is held {counted[block]} times")
            if state == CACHED and block not in self._content:
                raise AssertionError(f"block {block} is said to hold a prefix, which is not known")
        if self.num_available != counted.count(0):
            raise AssertionError(f"{self.num_available} blocks are said to be available, {counted.count(0)} are")
        if {block: key for key, block in self._known.items()} != {b: key for b, (key, _) in self._content.items()}:
            raise AssertionError("the known prefixes and their blocks differ")
