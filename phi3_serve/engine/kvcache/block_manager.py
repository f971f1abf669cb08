"""The blocks of the key-value cache: reference counts, free blocks, and blocks that hold a published prefix.

Plain Python, no tensors. Paged as in Kwon et al. 2023, PagedAttention, https://arxiv.org/abs/2309.06180.
"""

from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_SIZE = 16  # tokens; kernels/csrc/kv_cache.h has the same constant


@dataclass(frozen=True, slots=True)
class PrefixRoot:
    """The prefix before the first block: all that gives the same tokens other keys and values."""

    uses_long_factors: bool = False  # of RoPE
    adapters: tuple[tuple[int, float], ...] = ()  # the numbers of the adapters and their strengths


Prefix = PrefixRoot | int


class OutOfBlocks(Exception):
    """No block is available."""


class BlockManager:
    """Reference counts and published prefixes of ``num_blocks`` blocks.

    A prefix stands for the tokens from the start of a sequence to the end of one full block: a number, or a root.
    """

    def __init__(self, num_blocks: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._num_used = 0
        self._is_free = bytearray([True]) * num_blocks  # neither used nor idle
        self._idle: dict[int, None] = {}  # unused blocks with a published prefix, the least recently used first
        self.has_prefix_cache = prefix_cache
        # A published prefix is found by the prefix before its last block and the bytes of that block's token ids.
        self._published: dict[tuple[Prefix, bytes], int] = {}  # the block of each prefix
        self._prefix_of: dict[int, tuple[tuple[Prefix, bytes], int]] = {}  # for each block its key above and its prefix
        self._next_prefix = 0

    @property
    def num_available(self) -> int:
        """Blocks that ``allocate`` can still give."""
        return self.num_blocks - self._num_used

    def allocate(self) -> int:
        """A block with one reference. The least recently used published prefix is overwritten if no block is free.

        Raises:
            OutOfBlocks: every block is used.
        """
        block = self._is_free.find(True)  # the lowest number, so that few pages of memory are touched
        if block >= 0:
            self._is_free[block] = False
        elif self._idle:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._published[self._prefix_of.pop(block)[0]]
        else:
            raise OutOfBlocks
        self._references[block] = 1
        self._num_used += 1
        return block

    def share(self, block: int) -> None:
        """Add a reference to a used block."""
        self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether several sequences read ``block``, so that it must be copied before it is written."""
        return self._references[block] > 1

    def free(self, block: int) -> None:
        """Remove a reference. Without references a block can be allocated, or found again by its published prefix."""
        self._references[block] -= 1
        if self._references[block]:
            return
        self._num_used -= 1
        if block in self._prefix_of:
            self._idle[block] = None
        else:
            self._is_free[block] = True

    def acquire_prefix(self, parent: Prefix, token_bytes: bytes) -> tuple[int, int] | None:
        """The block with these tokens after the prefix ``parent``, with one more reference, and its prefix."""
        block = self._published.get((parent, token_bytes))
        if block is None:
            return None
        if block in self._idle:
            del self._idle[block]
            self._num_used += 1
        self._references[block] += 1
        return block, self._prefix_of[block][1]

    def publish_prefix(self, block: int, parent: Prefix, token_bytes: bytes) -> Prefix:
        """Let other sequences find ``block`` by its tokens and the prefix before it; returns its prefix."""
        if not self.has_prefix_cache:
            return parent
        key = (parent, token_bytes)
        if (published := self._published.get(key)) is not None:
            return self._prefix_of[published][1]
        prefix, self._next_prefix = self._next_prefix, self._next_prefix + 1
        self._published[key] = block
        self._prefix_of[block] = (key, prefix)
        return prefix

    def check_integrity(self, block_tables: Iterable[Iterable[int]]) -> None:
        """Raise AssertionError if the records contradict each other or the ``block_tables`` of all sequences."""
        counted = [0] * self.num_blocks
        for table in block_tables:
            for block in table:
                counted[block] += 1
        if counted != self._references:
            wrong = [b for b in range(self.num_blocks) if counted[b] != self._references[b]]
            counts = [(self._references[b], counted[b]) for b in wrong]
            raise AssertionError(f"blocks {wrong}: references (recorded, counted) are {counts}")
        for block, count in enumerate(counted):
            states = (count > 0, bool(self._is_free[block]), block in self._idle)
            if sum(states) != 1:
                raise AssertionError(f"block {block}: (used, free, idle) is {states}")
            if block in self._idle and block not in self._prefix_of:
                raise AssertionError(f"block {block}: idle without a published prefix")
        if self.num_available != counted.count(0):
            raise AssertionError(f"available blocks: {self.num_available} recorded, {counted.count(0)} counted")
        keys = {block: key for block, (key, _) in self._prefix_of.items()}
        if {block: key for key, block in self._published.items()} != keys:
            raise AssertionError("published prefixes and their blocks do not match")
