"""The kernels that a forward pass needs between its linear layers, for any device.

``reference`` implements them with torch, ``cpu`` with C++. ``select`` picks the implementation for a model. All of them
round where modeling_phi3.py of transformers 5.23 rounds.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """A query and the keys that it sees: positions [first, end) of the sequence with ``block_table``."""

    query: int  # its row in the batch
    block_table: "array[int]"  # block numbers, int32; must not change while the step runs
    first: int
    end: int


class PagedAttention(Protocol):
    """Attention of single queries over the paged cache, prepared once a step and called in every layer."""

    def attend(self, query: Tensor, cache: Tensor, output: Tensor, scale: float) -> None:
        """Write the softmax attention of each row into its row of ``output``; other rows are unchanged.

        Args:
            query: [tokens, heads, dim]; the heads of one token are contiguous.
            cache: [2 * kv_heads, slots, dim], the heads of the keys, then those of the values. ``heads`` is a
                multiple of ``kv_heads``.
            output: [tokens, heads, dim].
            scale: multiplies the products of queries and keys.
        """


class Kernels(Protocol):
    """The kernels. All tensors of one model have the same dtype and device, and are contiguous."""

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Add ``delta`` to ``hidden`` [tokens, width] in place; returns the RMS norm of the sum times ``weight``."""

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: Tensor) -> None:
        """Rotate queries and keys in place, and store keys and values in the cache.

        Args:
            qkv: [tokens, heads + 2 * kv_heads, dim]: queries, keys, values.
            rotation: cosine and signed sine, [tokens, 1, rotary dimensions]; see ``model.rope``. Dimensions beyond
                the rotary ones are not rotated.
            slots: int64; the cache slot of each token. Tokens beyond them are padding and are not stored.
            cache: [2 * kv_heads, slots, dim], the heads of the keys, then those of the values.
        """

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` for the two halves of ``gate_up`` [tokens, 2 * width]."""

    def paged_attention(self, rows: Sequence[AttentionRow], like: Tensor) -> PagedAttention:
        """Prepare the attention of one step; ``like`` has the dtype and the device of the cache."""
