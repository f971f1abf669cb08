"""Attention of a chunk of a prompt by torch's FlashAttention-2, over keys that are gathered from the paged cache.

In torch 2.11 the operation has no block tables, and those of 2.13 need pages of a multiple of 256 tokens; the cache has
blocks of 16. So keys and values are copied to one place first. The operation takes float16 and bfloat16 on a GPU from
Ampere on. Its mask is aligned to the end: the last query sees all keys, the query before it all but one, and so on
(aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp).
"""

import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import GatheredQueries
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

MAX_GATHERED_BYTES = 512 << 20  # of keys and values at once; with more, heads are computed in parts
MOVED_AS = torch.int64  # torch copies number by number, so large numbers are copied in less time
HEAD_DIMS = range(8, 257, 8)  # that the operation takes


def problem_of_flash_attention(
    *, head_dim: int, dtype: torch.dtype, is_before_ampere: bool, cache_has_8_bits: bool
) -> str | None:
    """Why torch's operation cannot be used; None if nothing is known.

    Args:
        head_dim: dimensions of a head.
        dtype: of queries and keys.
        is_before_ampere: whether the GPU is.
        cache_has_8_bits: whether keys and values are stored in 8 bits.
    """
    if not hasattr(torch.ops.aten, "_flash_attention_forward"):
        return f"torch {torch.__version__} has no such operation"
    if is_before_ampere:
        return "the GPU is older than Ampere"
    if dtype.itemsize != 2:
        return f"the model computes in {str(dtype).removeprefix('torch.')}"
    if cache_has_8_bits:
        return "the key-value cache has 8 bits"
    return None if head_dim in HEAD_DIMS else f"a head has {head_dim} dimensions"


def keys_at_once(num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """How many keys of all heads are gathered at most; beside more, fewer heads are gathered at once."""
    return MAX_GATHERED_BYTES // (2 * num_kv_heads * head_dim * dtype.itemsize)


def attend(
    query: Tensor,
    cache: KvCache,
    output: Tensor,
    block_tables: Tensor,
    chunk: GatheredQueries,
    *,
    scale: float,
    window: int | None,
) -> None:
    """Write the softmax attention of the queries of ``chunk`` into their rows of ``output``.

    Args:
        query: [tokens, heads, dim], all of the step; tokens may be any distance apart.
        cache: of one layer, contiguous, without scales.
        output: [tokens, heads, dim].
        block_tables: int32; see ``PagedQueries``. Blocks before the window may have any numbers.
        chunk: whose keys are in the cache.
        scale: multiplies the products of queries and keys.
        window: how many keys a query sees, its own included; None: all.
    """
    kv_heads, group = cache.num_kv_heads, query.shape[1] // cache.num_kv_heads
    rows = slice(chunk.row, chunk.row + chunk.num_queries)
    first_seen = 0 if window is None else max(0, chunk.end - chunk.num_queries - window + 1)
    first_block = first_seen // BLOCK_SIZE
    num_keys = chunk.end - first_block * BLOCK_SIZE
    blocks = block_tables[chunk.table + first_block : chunk.table - (-chunk.end // BLOCK_SIZE)]
    at_once = max(1, kv_heads * keys_at_once(kv_heads, query.shape[2], query.dtype) // num_keys)
    for first in range(0, kv_heads, at_once):
        stop = min(first + at_once, kv_heads)
        heads = slice(first * group, stop * group)
        # The gathered keys are freed before those of the next heads are gathered. They have no buffer of their own: the
        # rest of a step reuses their memory, and segments of torch's allocator that expand grow with them.
        output[rows, heads] = _of_heads(query[rows, heads], cache, slice(first, stop), blocks, num_keys, scale, window)


def _of_heads(
    query: Tensor, cache: KvCache, kv_heads: slice, blocks: Tensor, num_keys: int, scale: float, window: int | None
) -> Tensor:
    """The attention of ``query`` [queries, heads, dim] to the first ``num_keys`` keys in ``blocks``."""
    dim = query.shape[2]
    in_blocks = cache.values.view(2, cache.num_kv_heads, -1, BLOCK_SIZE * dim).view(MOVED_AS)
    gathered = in_blocks[:, kv_heads].index_select(2, blocks).view(cache.values.dtype)
    keys, values = gathered.view(2, gathered.shape[1], -1, dim)[:, :, :num_keys].transpose(1, 2).unbind()
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query[None],
        keys[None],
        values[None],
        None,  # the sequences of a batch all have the same length
        None,
        len(query),
        num_keys,
        0.0,  # dropout
        True,  # causal
        False,  # no mask of the dropout
        scale=scale,
        window_size_left=None if window is None else window - 1,  # keys before the query's own
        window_size_right=None if window is None else 0,
    )[0]
    return attended[0]
