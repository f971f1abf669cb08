"""The blocks of the key-value cache: who holds which, which are free, which still hold a known prefix.

Plain Python, no tensors. Paged as in Kwon et al. 2023, PagedAttention, https://arxiv.org/abs/2309.06180.
"""

from collections.abc import Iterable

BLOCK_SIZE = 16  # tokens; kernels.cpp has the same

ROOT = 0  # the prefix before all prefixes


class OutOfBlocks(Exception):
    """No block is free."""


class BlockManager:
    """Reference counts and known prefixes of ``num_blocks`` blocks."""

    def __init__(self, num_blocks: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._num_used = 0
        self._is_free = bytearray([True]) * num_blocks  # neither used nor idle
        self._idle: dict[int, None] = {}  # unused with a known prefix in it, the least recently used first
        self._prefix_cache = prefix_cache
        # A known prefix is its parent's number and the bytes of its last block of token ids.
        self._known: dict[tuple[int, bytes], int] = {}
        self._content: dict[int, tuple[tuple[int, bytes], int]] = {}  # block: (its key in _known, its number)
        self._next_number = ROOT + 2  # ROOT and ROOT + 1 are taken: see Sequence.take_known_prefix

    @property
    def num_available(self) -> int:
        """Blocks that can be had."""
        return self.num_blocks - self._num_used

    def allocate(self) -> int:
        """A block with one reference. Known prefixes are overwritten last, the least recently used first.

        Raises:
            OutOfBlocks: every block is used.
        """
        block = self._is_free.find(True)  # the lowest, so that few pages of memory are touched
        if block >= 0:
            self._is_free[block] = False
        elif self._idle:
            block = next(iter(self._idle))
            del self._idle[block]
            del self._known[self._content.pop(block)[0]]
        else:
            raise OutOfBlocks
        self._references[block] = 1
        self._num_used += 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a used block."""
        self._references[block] += 1

    def is_shared(self, block: int) -> bool:
        """Whether writing into ``block`` would change what another sequence reads."""
        return self._references[block] > 1

    def free(self, block: int) -> None:
        """One reference less; with the last one the block is free, and a known prefix stays findable in it."""
        self._references[block] -= 1
        if self._references[block]:
            return
        self._num_used -= 1
        if block in self._content:
            self._idle[block] = None
        else:
            self._is_free[block] = True

    def take_known(self, parent: int, token_bytes: bytes) -> tuple[int, int] | None:
        """The block with the keys of these tokens after the prefix ``parent``, one reference more, and its number."""
        block = self._known.get((parent, token_bytes))
        if block is None:
            return None
        if block in self._idle:
            del self._idle[block]
            self._num_used += 1
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

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """AssertionError unless the accounts agree with each other and with ``tables``, all block tables there are."""
        counted = [0] * self.num_blocks
        for table in tables:
            for block in table:
                counted[block] += 1
        if counted != self._references:
            wrong = [b for b in range(self.num_blocks) if counted[b] != self._references[b]]
            raise AssertionError(f"blocks {wrong}: held {[counted[b] for b in wrong]} times, accounts differ")
        for block, count in enumerate(counted):
            kinds = (count > 0, bool(self._is_free[block]), block in self._idle)
            if sum(kinds) != 1:
                raise AssertionError(f"block {block}: used, free, idle are {kinds}")
            if block in self._idle and block not in self._content:
                raise AssertionError(f"block {block} is said to hold a prefix, which is not known")
        if self.num_available != counted.count(0):
            raise AssertionError(f"{self.num_available} blocks are said to be available, {counted.count(0)} are")
        if {block: key for key, block in self._known.items()} != {b: key for b, (key, _) in self._content.items()}:
            raise AssertionError("the known prefixes and their blocks differ")
