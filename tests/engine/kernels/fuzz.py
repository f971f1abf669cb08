"""``make fuzz-kernels``: the Triton kernels on random shapes, in the interpreter, against the reference.

A case is drawn from its number and the seed alone, so a failure is repeated with ``CASES=1 SEED=...`` as printed.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

import torch

from phi3_serve.engine.kernels import triton_layers
from phi3_serve.engine.kernels.contract import BLOCKED_FORMS, MAX_SHORT_QUERIES, ROWS_PER_TILE
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCache
from phi3_serve.engine.kernels.quantize import quantize_to_fp8
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.triton_attention import AttentionConfig, decode_config, prefill_config
from phi3_serve.engine.kernels.triton_sampling import choose_tokens
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from tests.engine.kernels.interpreter import mended_interpreter
from tests.engine.kernels.test_triton_attention import NUM_BLOCKS, Request, Shape, check
from tests.engine.kernels.test_triton_choices import check as check_choices
from tests.engine.kernels.test_triton_fp8 import check as check_fp8
from tests.engine.kernels.test_triton_layers import assert_close
from tests.engine.kernels.test_triton_low_rank import NUM_PAGES, Mix
from tests.engine.kernels.test_triton_low_rank import check as check_adapters
from tests.engine.kernels.test_triton_quantized import Form
from tests.engine.kernels.test_triton_quantized import check as check_product

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STORED = (None, None, *EIGHT_BITS.values())  # dtypes of the cache; None: that of the queries
SECONDS_BETWEEN_LINES = 10.0
REFERENCE = ReferenceKernels()
NOTHING = torch.empty(0, dtype=torch.int32)


def attention(draw: random.Random) -> str:
    """Attention of random chunks: decoded tokens, drafts, prompts, padding; any window, head dim, group and split."""
    kv_heads, group = draw.choice((1, 2, 3)), draw.choice((1, 1, 2, 4, 8))
    window = draw.choice((None, draw.randint(1, 60)))
    shape = Shape(
        kv_heads * group,
        kv_heads,
        draw.choice((16, 24, 32, 64, 80, 96, 128)),
        draw.choice(DTYPES),
        window,
        draw.choice(STORED),
    )
    requests, num_blocks = [], 3  # the first block and the two that are shared have their places
    for _ in range(draw.randint(1, 4)):
        end = draw.choice((draw.randint(1, 20), BLOCK_SIZE * draw.randint(1, 5) + draw.choice((-1, 0, 1))))
        count = min(end, draw.choice((1, 1, draw.randint(2, 8), draw.randint(9, 40))))
        request = Request(count, end, shares=draw.random() < 0.2) if draw.random() < 0.9 else Request(0, 0)
        num_blocks += -(-request.end // BLOCK_SIZE)
        if num_blocks < NUM_BLOCKS:
            requests.append(request)
    config = AttentionConfig.of(
        draw.randint(1, max(1, 32 // group)),
        group,
        block_n=draw.choice((16, 32, 64)),
        num_splits=draw.choice((1, 1, 2, draw.randint(3, 5))),
        num_warps=4,
        num_stages=2,
        pads_dim=draw.random() < 0.5,
        skips_masks=draw.random() < 0.5,
    )
    check(requests, shape, config)
    return f"attention {requests} {shape} {config}"


def default_attention(draw: random.Random) -> str:
    """Attention with the configs of both models, at the borders of their blocks of keys."""
    kv_heads, group, dim = draw.choice(((2, 1, 96), (1, 4, 128)))
    window = draw.choice((None, draw.randint(1, 140)))
    shape = Shape(kv_heads * group, kv_heads, dim, draw.choice(DTYPES), window)
    end = draw.choice((draw.randint(1, 150), 32 * draw.randint(1, 4) + draw.choice((-1, 0, 1))))
    queries = min(end, draw.choice((1, draw.randint(2, 8), draw.randint(9, 60))))
    if queries > MAX_SHORT_QUERIES:
        config = prefill_config(1, kv_heads, group, shape.dtype, 132)
    else:
        config = decode_config(1, kv_heads, group, shape.dtype, 132, queries_per_tile=draw.choice((1, 4)))
    config = replace(config, num_splits=draw.choice((1, 2, 3)))
    check([Request(queries, end)], shape, config)
    return f"{queries} queries before {end}, {shape} {config}"


def layers(draw: random.Random) -> str:
    """The norm, SiLU and the rotation on random sizes."""
    dtype, tokens = draw.choice(DTYPES), draw.randint(1, 6)
    width = draw.randint(2, 3000)
    hidden, delta, weight = (
        torch.randn(tokens, width).to(dtype),
        torch.randn(tokens, width).to(dtype),
        torch.randn(width).to(dtype),
    )
    summed = hidden.clone()
    expected = REFERENCE.add_rms_norm(summed, delta, weight, 0.1)
    assert_close(triton_layers.add_rms_norm(hidden, delta, weight, 0.1), expected)
    assert_close(hidden, summed)
    gate_up = torch.randn(tokens, 2 * width).to(dtype)
    assert_close(triton_layers.silu_product(gate_up), REFERENCE.silu_product(gate_up))
    kv_heads = draw.randint(1, 12)
    heads, dim = kv_heads * draw.choice((1, 2, 4)), draw.choice((16, 40, 64, 96, 128))
    rotary = dim - draw.choice((0, 0, 2, dim // 4 // 2 * 2))
    qkv, cache = torch.randn(tokens, heads + 2 * kv_heads, dim).to(dtype), torch.randn(2 * kv_heads, 32, dim).to(dtype)
    rotation = (torch.randn(tokens, 1, rotary).to(dtype), torch.randn(tokens, 1, rotary).to(dtype))
    slots = torch.tensor(draw.sample(range(32), tokens), dtype=torch.int32)
    slots[draw.randrange(tokens)] = -1
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    REFERENCE.rotate_and_store(expected_qkv, rotation, slots, KvCache(expected_cache))
    triton_layers.rotate_and_store(qkv, rotation, slots, KvCache(cache))
    assert_close(qkv, expected_qkv)
    assert_close(cache, expected_cache)
    return f"layers {dtype} {tokens} tokens, width {width}, {heads}/{kv_heads} heads of {dim}, {rotary} of them rotate"


def sampling(draw: random.Random) -> str:
    """Greedy tokens, and draws that stay among the top_k."""
    vocab, rows, top_k = draw.randint(1, 900), draw.randint(1, 4), draw.randint(1, 20)
    logits = (torch.randn(rows, vocab) * 3).to(draw.choice(DTYPES))
    tokens = torch.empty(rows, dtype=torch.int32)
    for is_drawn in (0, 1):
        warpers = (draw.uniform(0.2, 2.0), draw.uniform(0.3, 1.0), draw.choice((0.0, 0.05)), 1.0, 0.0, 0.0)
        floats = torch.tensor([(1.0, 1.0, 0.0, 0.0, *warpers)] * rows)
        ints = torch.tensor([(-1, is_drawn, top_k, 1, 0, 0)] * rows, dtype=torch.int32)
        seed = torch.tensor([draw.randrange(2**40), draw.randrange(2**20)])
        choose_tokens(logits, floats, ints, (NOTHING, NOTHING), NOTHING, seed, tokens)
        chosen = logits.float().gather(1, tokens[:, None].long())[:, 0]
        allowed = logits.float().topk(min(top_k, vocab) if is_drawn else 1).values[:, -1]
        assert (chosen >= allowed).all(), (tokens, top_k)
    return f"sampling {rows} rows of {vocab}, top_k {top_k}"


def choices(draw: random.Random) -> str:
    """What penalties and warpers leave, against those of the host."""
    vocab, dtype = draw.choice((draw.randint(1, 900), draw.randint(4000, 5000))), draw.choice(DTYPES)
    num_edges = check_choices(draw, vocab, dtype)
    return f"choices of {vocab} tokens in {dtype}, {num_edges} rows on an edge"


def quantized(draw: random.Random) -> str:
    """Linear layers with weights of fewer bits, of any form, size and number of rows."""
    bits = draw.choice(tuple(BLOCKED_FORMS))
    form, inputs = Form(bits, torch.float32 if bits == 8 else draw.choice(DTYPES)), draw.randint(1, 900)
    if draw.random() < 0.5:
        group, has_minima = draw.choice(BLOCKED_FORMS[bits])
        form = Form(bits, group=group, groups=2 * draw.randint(1, 8), has_minima=has_minima)
        inputs = group * form.groups * draw.randint(1, 3)
    outputs, rows = draw.randint(1, 100), draw.choice((1, 1, draw.randint(2, 16), draw.randint(17, 140)))
    dtype = draw.choice(DTYPES)
    check_product(form.drawn(outputs, inputs), torch.randn(rows, inputs).to(dtype))
    return f"{rows} rows {dtype} times {outputs} x {inputs} of {form}"


def in_fp8(draw: random.Random) -> str:
    """Linear layers in float8 of any size, with rows of any size, some of them zero."""
    outputs, inputs = draw.randint(1, 100), draw.choice((draw.randint(1, 900), draw.randint(2000, 2100)))
    rows, dtype = draw.choice((1, draw.randint(2, 16), draw.randint(17, 140))), draw.choice(DTYPES)
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    for matrix in (weight, x):
        matrix *= 10 ** (torch.rand(len(matrix), 1) * 4 - 3) * (torch.rand(len(matrix), 1) < 0.9)
    check_fp8(quantize_to_fp8(weight), x.to(dtype))
    return f"{rows} rows {dtype} times {outputs} x {inputs} in float8"


def adapters(draw: random.Random) -> str:
    """Products of adapters: any mixes of any ranks on any rows, in any order."""
    num_rows, dtype = draw.choice((draw.randint(1, 8), draw.randint(9, 60))), draw.choice(DTYPES)
    rows = draw.sample(range(num_rows), draw.randint(0, num_rows))
    mixes = []
    while rows:
        count = draw.choice((1, 1, draw.randint(1, len(rows))))
        of_mix, rows = rows[:count], rows[count:]
        pages = [(draw.randrange(NUM_PAGES), draw.uniform(-2, 2)) for _ in range(draw.choice((1, 1, 2, 5)))]
        mixes.append(Mix(of_mix, pages))
    inputs = draw.randint(1, 300) if draw.random() < 0.8 else draw.randint(2000, 2200)  # these are split
    outputs = draw.randint(1, 300)
    rows_per_tile, padding = draw.choice(ROWS_PER_TILE), draw.choice((0, 3))
    check_adapters(mixes, num_rows, inputs, outputs, dtype, rows_per_tile, padding)
    return f"{len(mixes)} mixes on {num_rows} rows {dtype}, {inputs} to {outputs}, tiles of {rows_per_tile}"


KINDS: tuple[Callable[[random.Random], str], ...] = (
    attention,
    default_attention,
    attention,
    layers,
    sampling,
    choices,
    quantized,
    in_fp8,
    adapters,
)


def main(count: int, seed: int) -> int:
    """Run ``count`` cases; 1 if one fails."""
    began = last = time.monotonic()
    for number in range(count):
        case = seed + number
        draw = random.Random(case)
        torch.manual_seed(case)
        try:
            described = KINDS[case % len(KINDS)](draw)
        except Exception:
            traceback.print_exc()
            print(f"case {case} failed; again: make fuzz-kernels CASES=1 SEED={case}")
            return 1
        if time.monotonic() - last > SECONDS_BETWEEN_LINES or number == count - 1:
            last = time.monotonic()
            print(f"{number + 1} of {count} cases, {last - began:.0f} s; the last: {described}", flush=True)
    return 0


if __name__ == "__main__":
    with mended_interpreter():
        sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
