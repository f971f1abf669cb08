"""One sequence of token ids and the blocks that hold its keys and values. Plain Python, no tensors."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable

from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, ROOT, BlockManager


class Sequence:
    """Token ids, how many of them the cache holds, and where.

    The last token is never in the cache: its forward pass is what gives the next one.
    """

    def __init__(
        self, token_ids: Iterable[int], *, long_from: int | None = None, follows_crossing: bool = True
    ) -> None:
        self.tokens = array("q", token_ids)
        self.num_prompt_tokens = len(self.tokens)
        self.num_cached = 0
        self.table = array("i")  # its blocks, in order
        self.draft: tuple[int, ...] = ()  # tokens that may come next, to be verified in one pass
        self.is_long = False  # whether what is cached was made with the long RoPE factors
        self._long_from = long_from  # tokens; the length from which RoPE is long
        self._follows_crossing = follows_crossing
        self._prefix = ROOT
        self._num_known = 0  # blocks that others can find

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Tokens whose keys are not cached."""
        return len(self.tokens) - self.num_cached

    @property
    def is_cold(self) -> bool:
        """Whether nothing is cached of what could be."""
        return not self.num_cached and self.num_pending > 1

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """The tokens of the answer."""
        return tuple(self.tokens[self.num_prompt_tokens :])

    def slot(self, position: int) -> int:
        """Where the cache holds the token at ``position``."""
        return self.table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def is_long_at(self, length: int) -> bool:
        """Whether a forward pass up to ``length`` tokens takes the long RoPE factors."""
        return self._long_from is not None and length >= self._long_from

    def crosses(self) -> bool:
        """Whether the cache holds keys of the short RoPE factors, and the next pass needs the long ones.

        transformers then computes all keys anew (modeling_phi3.py, prepare_inputs_for_generation).
        """
        return self._follows_crossing and self.num_cached > 0 and not self.is_long and self.is_long_at(len(self.tokens))

    def room_for_draft(self) -> int:
        """How many drafted tokens fit before RoPE changes."""
        if self._long_from is None or self.is_long_at(len(self.tokens)):
            return len(self.tokens)
        return self._long_from - len(self.tokens) - 1

    def fork(self, blocks: BlockManager) -> "Sequence":
        """A sequence with the same tokens, which shares all blocks with this one."""
        twin = Sequence((), long_from=self._long_from, follows_crossing=self._follows_crossing)
        twin.tokens = self.tokens[:]
        twin.num_prompt_tokens = self.num_prompt_tokens
        twin.num_cached = self.num_cached
        twin.is_long = self.is_long
        twin.table = self.table[:]
        twin._prefix, twin._num_known = self._prefix, self._num_known
        for block in twin.table:
            blocks.share(block)
        return twin

    def drop(self, blocks: BlockManager) -> None:
        """Give all blocks back; what was cached is to be computed again."""
        for block in reversed(self.table):
            blocks.free(block)
        self.table = array("i")
        self.num_cached = 0
        self._prefix, self._num_known = ROOT, 0
        self.draft = ()

    def take_known_prefix(self, blocks: BlockManager) -> None:
        """Start from the longest prefix that is cached already; at least the last token stays pending."""
        self.is_long = self.is_long_at(len(self.tokens))
        self._prefix = ROOT + self.is_long  # the same tokens have other keys with the long factors
        while (self._num_known + 1) * BLOCK_SIZE < len(self.tokens):
            known = blocks.take_known(self._prefix, self._block_bytes(self._num_known))
            if known is None:
                break
            block, self._prefix = known
            self.table.append(block)
            self._num_known += 1
        self.num_cached = self._num_known * BLOCK_SIZE

    def num_common_blocks(self, other: "Sequence") -> int:
        """How many full blocks this one and ``other`` begin with alike; at least the last token is in none of them."""
        most = (min(len(self), len(other)) - 1) // BLOCK_SIZE

        def differs(number: int) -> bool:
            end = (number + 1) * BLOCK_SIZE
            return self.tokens[:end] != other.tokens[:end]

        return bisect_left(range(most), True, key=differs)

    def take_prefix_of(self, other: "Sequence", blocks: BlockManager) -> None:
        """Start from what ``other`` has cached of their common prefix."""
        self.is_long = self.is_long_at(len(self.tokens))
        self._prefix = ROOT + self.is_long
        count = min(self.num_common_blocks(other), other.num_cached // BLOCK_SIZE)
        for block in other.table[:count]:
            blocks.share(block)
            self.table.append(block)
        self.num_cached = count * BLOCK_SIZE

    def make_known(self, blocks: BlockManager) -> None:
        """Let others find the blocks that are full."""
        while (self._num_known + 1) * BLOCK_SIZE <= self.num_cached:
            block = self.table[self._num_known]
            self._prefix = blocks.make_known(block, self._prefix, self._block_bytes(self._num_known))
            self._num_known += 1

    def _block_bytes(self, number: int) -> bytes:
        return self.tokens[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE].tobytes()

    def num_blocks_short(self, num_tokens: int) -> int:
        """How many blocks the next ``num_tokens`` need beyond the table, a copy of a shared one not counted."""
        return max(0, -(-(self.num_cached + num_tokens) // BLOCK_SIZE) - len(self.table))
