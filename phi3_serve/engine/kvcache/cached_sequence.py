"""One sequence of token ids and the cache blocks that hold its keys and values. Plain Python, no tensors."""

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager, Prefix, PrefixRoot


def num_unseen_blocks(position: int, window: int | None) -> int:
    """How many leading blocks the queries from ``position`` on do not see.

    ``window``: how many keys a query sees, its own included; None: all.
    """
    return 0 if window is None else max(0, position - window + 1) // BLOCK_SIZE


class CachedSequence:
    """Token ids, how many of them are cached, and in which blocks.

    The last token is never cached: its forward pass gives the scores of the next token. On a GPU the last token can be
    unread: it is chosen, but its id is only on the device. Unread tokens count in the length and are not in ``tokens``.
    """

    def __init__(
        self,
        token_ids: Iterable[int],
        *,
        long_factors_from: int | None = None,
        recomputes_at_crossing: bool = True,
        adapters: tuple[AppliedAdapter, ...] = (),
    ) -> None:
        """``adapters`` are those that all tokens are run with.

        ``long_factors_from``: the length in tokens from which RoPE takes its long factors; None: it never does.

        ``recomputes_at_crossing``: whether cached keys are computed again when the sequence reaches that length. If
        not, all tokens of the prompt take the same factors, and a later token takes those of the length up to itself.
        """
        self.tokens = array("q", token_ids)
        self.num_prompt_tokens = len(self.tokens)
        self.num_cached = 0  # tokens
        self.num_unread = 0  # tokens
        self.unread_index = 0  # of the last unread token, among the tokens that its step chose
        self.block_table = array("i")
        self.num_freed = 0  # leading blocks that are given back; their entries in the block table are 0
        self.draft: tuple[int, ...] = ()  # speculated next tokens, which the next step verifies
        self.num_reusable: float = math.inf  # leading tokens whose keys may come from the prefix cache
        self._long_factors_from = long_factors_from
        self._recomputes_at_crossing = recomputes_at_crossing
        self.adapters = adapters
        self._root = PrefixRoot(adapters=tuple((applied.adapter.number, applied.strength) for applied in adapters))
        self._prefix: Prefix = self._root  # the prefix that ends with the last published block
        self._num_published = 0  # blocks

    def __len__(self) -> int:
        return len(self.tokens) + self.num_unread

    @property
    def uses_long_factors(self) -> bool:
        """Whether the first cached key was computed with the long RoPE factors."""
        return self._root.uses_long_factors

    @property
    def num_pending(self) -> int:
        """Tokens that are not cached."""
        return len(self) - self.num_cached

    @property
    def held_blocks(self) -> "array[int]":
        """The block table without the freed blocks."""
        return self.block_table[self.num_freed :]

    @property
    def has_no_cached_tokens(self) -> bool:
        """Whether nothing is cached although something could be."""
        return not self.num_cached and self.num_pending > 1

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """The tokens after the prompt."""
        return tuple(self.tokens[self.num_prompt_tokens :])

    def expect_token(self, index: int) -> None:
        """Count a token that is chosen but unread; ``index``: see ``unread_index``."""
        self.num_unread += 1
        self.unread_index = index

    def append(self, token: int) -> None:
        """Add a chosen token; it is the oldest unread one if there are any.

        Without a later unread token it is the only pending one: what is cached beyond it belongs to a rejected draft.
        """
        self.num_unread = max(0, self.num_unread - 1)
        self.tokens.append(token)
        self.num_cached = min(self.num_cached, len(self) - 1)

    def slot(self, position: int) -> int:
        """The cache slot of the token at ``position``."""
        return self.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    def needs_long_factors(self, length: int) -> bool:
        """Whether a forward pass over ``length`` tokens takes the long RoPE factors."""
        return self._long_factors_from is not None and length >= self._long_factors_from

    @property
    def num_with_short_factors(self) -> float:
        """How many leading tokens take the short RoPE factors when they are run; the others take the long ones."""
        if self._long_factors_from is None:
            return math.inf
        if self.needs_long_factors(len(self) if self._recomputes_at_crossing else self.num_prompt_tokens):
            return 0
        return math.inf if self._recomputes_at_crossing else self._long_factors_from - 1

    def must_recompute(self) -> bool:
        """Whether keys are cached with the short RoPE factors, but the next forward pass takes the long ones.

        transformers then computes all keys again (modeling_phi3.py, prepare_inputs_for_generation).
        """
        return (
            self._recomputes_at_crossing
            and self.num_cached > 0
            and not self.uses_long_factors
            and self.needs_long_factors(len(self))
        )

    def draft_capacity(self) -> int:
        """How many drafted tokens fit before RoPE changes its factors."""
        if self._long_factors_from is None or self.needs_long_factors(len(self)):
            return len(self.tokens)
        return self._long_factors_from - len(self.tokens) - 1

    def num_missing_blocks(self, num_tokens: int) -> int:
        """How many more blocks the next ``num_tokens`` need, without the copy of a shared block."""
        return max(0, -(-(self.num_cached + num_tokens) // BLOCK_SIZE) - len(self.block_table))

    def num_writable(self, num_more_blocks: int) -> int:
        """How many of the next tokens fit into the sequence's blocks and ``num_more_blocks`` new ones."""
        return (len(self.block_table) + num_more_blocks) * BLOCK_SIZE - self.num_cached

    def num_common_blocks(self, other: "CachedSequence") -> int:
        """How many leading full blocks have the same tokens in both; a last token, never cached, is not counted."""
        limit = (min(len(self), len(other)) - 1) // BLOCK_SIZE

        def differs(number: int) -> bool:
            end = (number + 1) * BLOCK_SIZE
            return self.tokens[:end] != other.tokens[:end]

        return bisect_left(range(limit), True, key=differs)

    def fork(self, blocks: BlockManager) -> "CachedSequence":
        """A copy that shares all blocks with this sequence."""
        twin = CachedSequence(
            (),
            long_factors_from=self._long_factors_from,
            recomputes_at_crossing=self._recomputes_at_crossing,
            adapters=self.adapters,
        )
        twin.tokens = self.tokens[:]
        twin.num_prompt_tokens = self.num_prompt_tokens
        twin.num_cached = self.num_cached
        twin._root = self._root
        twin.block_table, twin.num_freed = self.block_table[:], self.num_freed
        twin._prefix, twin._num_published = self._prefix, self._num_published
        for block in twin.held_blocks:
            blocks.share(block)
        return twin

    def release(self, blocks: BlockManager) -> None:
        """Free all blocks. The tokens stay, their keys must be computed again."""
        for block in reversed(self.held_blocks):
            blocks.free(block)
        self.block_table = array("i")
        self.num_freed = self.num_cached = 0
        self._start_prefix(uses_long_factors=False)
        self.draft = ()

    def acquire_prefix(self, blocks: BlockManager) -> None:
        """Start from the longest prefix that other sequences have published. The last token stays pending."""
        self._start_prefix(uses_long_factors=not self.num_with_short_factors)
        end = min(len(self.tokens) - 1, self._prefix_end, self.num_reusable)
        while (self._num_published + 1) * BLOCK_SIZE <= end:
            found = blocks.acquire_prefix(self._prefix, self._block_bytes(self._num_published))
            if found is None:
                break
            block, self._prefix = found
            self.block_table.append(block)
            self._num_published += 1
        self.num_cached = self._num_published * BLOCK_SIZE

    def share_prefix(self, other: "CachedSequence", blocks: BlockManager, window: int | None = None) -> None:
        """Start from the cached part of the prefix that this sequence has in common with ``other``.

        Start from nothing if ``other`` has freed blocks that the next query sees in its ``window``.
        """
        self._start_prefix(uses_long_factors=not self.num_with_short_factors)
        count = min(self.num_common_blocks(other), other.num_cached // BLOCK_SIZE)
        num_unseen = num_unseen_blocks(count * BLOCK_SIZE, window)
        if other.num_freed > num_unseen:
            return
        self.block_table, self.num_freed = (
            array("i", [0]) * num_unseen + other.block_table[num_unseen:count],
            num_unseen,
        )
        for block in self.held_blocks:
            blocks.share(block)
        self.num_cached = count * BLOCK_SIZE

    def free_unseen_blocks(self, blocks: BlockManager, position: int, window: int | None) -> None:
        """Give back the leading blocks that no query from ``position`` on sees in its ``window``."""
        for number in range(self.num_freed, num_unseen_blocks(position, window)):
            blocks.free(self.block_table[number])
            self.block_table[number] = 0
            self.num_freed += 1

    def publish_prefix(self, blocks: BlockManager) -> None:
        """Let other sequences find the full blocks of this one, unless a leading one was freed before.

        Drafted and unread tokens are not published, because the host does not know which tokens the answer gets.
        """
        end = min(self.num_cached, len(self.tokens), self._prefix_end)
        while self._num_published >= self.num_freed and (self._num_published + 1) * BLOCK_SIZE <= end:
            block = self.block_table[self._num_published]
            self._prefix = blocks.publish_prefix(block, self._prefix, self._block_bytes(self._num_published))
            self._num_published += 1

    def has_prefix_underway(self, other: "CachedSequence") -> bool:
        """Whether ``other`` is going to publish blocks that this sequence would have to compute itself."""
        if self._root != other._root:
            return False
        ends = (self._prefix_end, other._prefix_end, self.num_reusable)
        end = min(self.num_common_blocks(other) * BLOCK_SIZE, *ends)
        return max(self.num_cached, other.num_cached) < end

    @property
    def _prefix_end(self) -> float:
        """How many leading tokens take the same RoPE factors. Keys behind a change of factors are not published."""
        return self.num_with_short_factors or math.inf

    def _start_prefix(self, uses_long_factors: bool) -> None:
        if uses_long_factors != self._root.uses_long_factors:
            self._root = replace(self._root, uses_long_factors=uses_long_factors)
        self._prefix = self._root
        self._num_published = 0

    def _block_bytes(self, number: int) -> bytes:
        return self.tokens[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE].tobytes()
