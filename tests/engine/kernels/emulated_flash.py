"""An emulation of ``aten::_flash_attention_forward``, which has no form for a CPU, for its part without dropout.

It follows what flash_api.cpp documents: the mask is aligned to the end, so that the last query sees the last key;
``window_size_left`` counts the keys before a query's own position and ``window_size_right`` those after it, -1 or none:
all; query heads share the heads of the keys in order. It refuses what the operation refuses, but for float32, so that
tests can compare closely. torch's own dispatcher calls it, so calls have to fit the operation of the installed torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def emulated_flash_attention() -> Iterator[list[tuple[int, int, int]]]:
    """While the context lasts, the operation runs on the CPU; the (queries, keys, heads) of each call."""
    calls: list[tuple[int, int, int]] = []

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cum_seq_q: Tensor | None,
        cum_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        dropout_p: float,
        is_causal: bool,
        return_debug_mask: bool,
        *,
        scale: float | None = None,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
        **others: object,
    ) -> tuple[Tensor, ...]:
        assert cum_seq_q is cum_seq_k is None
        assert all(other is None for other in others.values())
        assert (dropout_p, return_debug_mask) == (0.0, False)
        for part in (query, key, value):
            assert part.dim() == 4
            assert part.stride(3) == 1, "Input tensor must have contiguous last dimension"
        (_, queries, heads, dim), (_, keys, kv_heads, _) = query.shape, key.shape
        assert (max_q, max_k) == (queries, keys)
        assert value.shape == key.shape == (1, keys, kv_heads, dim)
        assert query.dtype == key.dtype == value.dtype
        assert dim % 8 == 0
        assert heads % kv_heads == 0
        calls.append((queries, keys, heads))
        left = -1 if window_size_left is None else window_size_left
        right = 0 if is_causal else -1 if window_size_right is None else window_size_right
        position = torch.arange(queries)[:, None] + keys - queries
        of_key = torch.arange(keys)
        is_seen = torch.ones(queries, keys, dtype=torch.bool)
        if right >= 0:
            is_seen &= of_key <= position + right
        if left >= 0:
            is_seen &= of_key >= position - left
        of_group = heads // kv_heads
        repeated = [part[0].transpose(0, 1).double().repeat_interleave(of_group, 0) for part in (key, value)]
        scores = query[0].transpose(0, 1).double() @ repeated[0].mT * (dim**-0.5 if scale is None else scale)
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
        attended = (weights @ repeated[1]).transpose(0, 1)[None].to(query.dtype)
        none = torch.empty(0)
        return attended, torch.empty(1, heads, queries), none, none, none

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        yield calls
