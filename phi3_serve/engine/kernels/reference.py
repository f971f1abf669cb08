"""What a step does between the linear layers: norms, rotation, attention of single queries, SiLU.

Here as torch does it on any device; ``native.py`` has the same as kernels of our own for a CPU. Numbers are rounded
where modeling_phi3.py of transformers 5.23 rounds them.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Row:
    """A query and the keys it sees: positions [first, end) of the sequence whose blocks are in ``table``."""

    query: int  # its row of the batch
    table: "array[int]"
    first: int
    end: int


class Reader(Protocol):
    """The rows of one step, ready to be read in every layer."""

    def attend(self, query: Tensor, cache: Tensor, output: Tensor, scale: float) -> None:
        """Softmax attention of each row into its row of ``output`` [tokens, heads, dim].

        ``query`` is [tokens, heads, dim]; ``cache`` [2 * kv_heads, positions, dim] holds the keys' heads, then the
        values'.
        """


class Operations:
    """The operations in torch."""

    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Add ``delta`` to ``hidden`` [tokens, width] in place; the sum divided by its root mean square."""
        hidden += delta
        return rms_norm(hidden, weight.shape, weight, epsilon)

    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: Tensor) -> None:
        """Rotate queries and keys of ``qkv`` [tokens, heads + 2 * kv_heads, dim] in place; put keys and values at
        the positions ``slots`` of ``cache`` [2 * kv_heads, positions, dim]. Tokens beyond ``slots`` are nobody's.
        """
        rotary = rotation[0].shape[-1]  # some Phi-3 models rotate only the first of the dimensions
        num_kv_heads = len(cache) // 2
        rotate_(qkv[:, :-num_kv_heads, :rotary], *rotation)
        cache.index_copy_(1, slots, qkv[: len(slots), -2 * num_kv_heads :].transpose(0, 1))

    def reader(self, rows: list[Row], like: Tensor) -> Reader:
        """``rows`` made ready; ``like`` is of the type and on the device of the cache."""
        return _PaddedReader(rows, like)

    def silu_product(self, gate_up: Tensor) -> Tensor:
        """``silu(gate) * up`` of the halves of ``gate_up`` [tokens, 2 * width]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)


class _PaddedReader:
    """Rows of about one length are gathered into one tensor, the shorter ones padded and masked."""

    def __init__(self, rows: list[Row], like: Tensor) -> None:
        self._groups = [_Group.of(list(group), like) for _, group in _by_length(rows)]

    def attend(self, query: Tensor, cache: Tensor, output: Tensor, scale: float) -> None:
        """See ``Reader``."""
        for group in self._groups:
            keys, values = cache[:, group.positions].transpose(0, 1).chunk(2, dim=1)
            answer = scaled_dot_product_attention(
                query[group.queries][:, :, None], keys, values, attn_mask=group.mask, scale=scale, enable_gqa=True
            )
            output[group.queries] = answer[:, :, 0]


def _by_length(rows: list[Row]) -> Iterator[tuple[int, Iterator[Row]]]:
    """Groups in which the longest has less than twice as many keys as the shortest."""
    return groupby(sorted(rows, key=_length), key=lambda row: _length(row).bit_length())


def _length(row: Row) -> int:
    return row.end - row.first


@dataclass(frozen=True, slots=True)
class _Group:
    queries: Tensor  # [rows]
    positions: Tensor  # [rows, longest]
    mask: Tensor  # True for what is seen, [rows, 1, 1, longest]

    @classmethod
    def of(cls, rows: list[Row], like: Tensor) -> "_Group":
        positions = np.zeros((len(rows), max(map(_length, rows))), dtype=np.int64)
        seen = np.zeros(positions.shape, dtype=bool)
        for at, row in enumerate(rows):
            positions[at, : _length(row)] = cache_positions(row.table, row.first, row.end)
            seen[at, : _length(row)] = True
        queries = torch.tensor([row.query for row in rows])
        mask = torch.from_numpy(seen)[:, None, None]
        return cls(*(t.to(like.device) for t in (queries, torch.from_numpy(positions), mask)))


def cache_positions(table: "array[int]", first: int, end: int) -> Any:
    """Where the cache holds the tokens [first, end) of a sequence, int64."""
    begins = np.frombuffer(table, dtype=np.int32)[first // BLOCK_SIZE : -(-end // BLOCK_SIZE)].astype(np.int64)
    positions = begins[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)
    return positions.reshape(-1)[first % BLOCK_SIZE :][: end - first]


def rotate_(x: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotate ``x`` [tokens, heads, rotary dimensions] in place: pairs are half the dimensions apart."""
    swapped = x.roll(x.shape[-1] // 2, -1)
    x.mul_(cosine).addcmul_(swapped, sine)
