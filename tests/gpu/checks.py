"""Whether a GPU computes what it should: kernels against the reference, draws, answers against transformers."""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.engine.kernels.contract import MAX_SHORT_QUERIES, PagedQueries
from phi3_serve.engine.kernels.cuda import CudaKernels
from phi3_serve.engine.kernels.quantize import quantize
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import problem_of_pack
from phi3_serve.engine.kernels.triton_quantized import TritonWeights
from phi3_serve.engine.kernels.triton_sampling import choose_tokens
from tests.gpu.report import say, write

PARITY_S = 45.0
QUANTIZED_SIZES = [(9216, 3072), (3072, 8192)]
QUANTIZED_ROWS = (1, 2, 16, 33, 100, 200)  # those of one row, of tiles of 16 to 64 rows, and dequantised
NORM_BOUND = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}  # of the error, relative
NUMBER_BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}  # of a single number
NUM_BLOCKS = 600
# (queries, end): decoded tokens, drafts, chunks of prompts with and without a prefix, padding
CHUNKS = [(1, 1), (1, 16), (1, 17), (5, 40), (8, 300), (1, 2100), (70, 70), (200, 700), (300, 2500), (0, 0)]
# heads, heads of the keys, dimensions, dtypes
SHAPES = [
    (32, 32, 96, (torch.bfloat16,)),
    (40, 10, 128, (torch.bfloat16,)),
    (4, 2, 32, (torch.float32, torch.float16)),
]
# temperature, top_p, min_p, top_k, min_tokens_to_keep
DRAWS = [(1.0, 1.0, 0.0, 0, 1), (0.7, 1.0, 0.0, 10, 1), (1.0, 0.9, 0.0, 0, 1), (0.8, 0.8, 0.02, 40, 1)]
NUM_DRAWS, VOCAB = 4096, 32_064
MAX_Z = 4.5  # of the counts of the most likely tokens


def kernels() -> dict[str, Any]:
    """Each kernel against the reference; attention against the reference in float64."""
    torch.backends.cuda.matmul.allow_tf32 = False
    worst: dict[str, float] = {}
    for heads, kv_heads, dim, dtypes in SHAPES:
        for dtype in dtypes:
            ours = CudaKernels(num_heads=heads, num_kv_heads=kv_heads, dtype=dtype, device=torch.device("cuda"))
            cache = torch.randn(2 * kv_heads, NUM_BLOCKS * 16, dim, device="cuda").to(dtype)
            name = f"{heads}/{kv_heads} heads of {dim}, {str(dtype).removeprefix('torch.')}"
            worst[name] = _check_attention(ours, cache, heads, dtype)
            _check_layers(ours, cache, heads, dtype)
            say(f"kernels, {name}: right; relative error of attention {worst[name]:.1e}")
    return worst


def _check_attention(ours: CudaKernels, cache: Tensor, heads: int, dtype: torch.dtype) -> float:
    queries, rows = _queries(ours.queries_per_tile)
    qkv = torch.randn(rows, heads + len(cache), cache.shape[2], device="cuda").to(dtype)
    scale, worst = cache.shape[2] ** -0.5, 0.0
    for window in (None, 64, 2047):
        mine = ours.attend(qkv, cache, queries, scale, window).double()
        theirs = ReferenceKernels().attend(qkv.double(), cache.double(), queries, scale, window)
        error = float((mine - theirs).norm() / theirs.norm())
        assert error < NORM_BOUND[dtype], f"attention with window {window}: relative error {error}"
        worst = max(worst, error)
    return worst


def _queries(queries_per_tile: tuple[int, int]) -> tuple[PagedQueries, int]:
    tables: list[int] = []
    sequences: list[tuple[int, ...]] = []
    short: list[tuple[int, int]] = []
    long: list[tuple[int, int]] = []
    row = 0
    for number, (count, end) in enumerate(CHUNKS):
        sequences.append((row, count, end, len(tables)))
        tables += torch.randperm(NUM_BLOCKS)[: -(-end // 16)].tolist()
        is_short = count <= MAX_SHORT_QUERIES
        tiles, size = (short, queries_per_tile[0]) if is_short else (long, queries_per_tile[1])
        tiles += [(number, first) for first in range(0, max(count, 1), size)]
        row += count
    parts = [torch.tensor(part, dtype=torch.int32, device="cuda") for part in (sequences, tables, short, long)]
    return PagedQueries(*parts), row


def _check_layers(ours: CudaKernels, cache: Tensor, heads: int, dtype: torch.dtype) -> None:
    reference, kv_heads, dim = ReferenceKernels(), len(cache) // 2, cache.shape[2]
    bound = NUMBER_BOUND[dtype]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda").to(dtype)

    hidden, delta, weight = draw(37, heads * dim), draw(37, heads * dim), draw(heads * dim)
    one, other = hidden.clone(), hidden.clone()
    normed = (k.add_rms_norm(x, delta, weight, 1e-5) for k, x in ((ours, one), (reference, other)))
    torch.testing.assert_close(*normed, rtol=bound, atol=bound)
    assert torch.equal(one, other)
    gate_up = draw(37, 2000)
    torch.testing.assert_close(ours.silu_product(gate_up), reference.silu_product(gate_up), rtol=bound, atol=bound)
    rotation, qkv = (draw(37, 1, dim), draw(37, 1, dim)), draw(37, heads + 2 * kv_heads, dim)
    slots = torch.randperm(NUM_BLOCKS * 16, device="cuda")[:37].int()
    slots[3] = -1
    results = []
    for kernels in (ours, reference):
        results.append((qkv.clone(), cache.clone()))
        kernels.rotate_and_store(results[-1][0], rotation, slots, results[-1][1])
    torch.testing.assert_close(
        results[0][0][:, : heads + kv_heads], results[1][0][:, : heads + kv_heads], rtol=bound, atol=bound
    )
    torch.testing.assert_close(results[0][1], results[1][1], rtol=bound, atol=bound)


def sampler() -> dict[str, Any]:
    """No draw outside the support of the warpers; counts of the most likely tokens near their expectation."""
    found = {}
    logits = (torch.randn(1, VOCAB, device="cuda") * 3).bfloat16().expand(NUM_DRAWS, VOCAB).contiguous()
    for temperature, top_p, min_p, top_k, keep in DRAWS:
        floats = torch.tensor([(temperature, top_p, min_p)] * NUM_DRAWS, device="cuda")
        ints = torch.tensor([(1, top_k, keep)] * NUM_DRAWS, dtype=torch.int32, device="cuda")
        tokens = torch.empty(NUM_DRAWS, dtype=torch.int32, device="cuda")
        choose_tokens(logits, floats, ints, torch.tensor([5, 9], device="cuda"), tokens)
        expected = NUM_DRAWS * _distribution(logits[0].double() / temperature, top_k, top_p, min_p, keep)
        counts = torch.bincount(tokens.long(), minlength=VOCAB).double()
        assert not counts[expected == 0].any(), "a token was drawn that the warpers rule out"
        top = expected.topk(20).indices
        deviation = (expected[top] * (1 - expected[top] / NUM_DRAWS)).sqrt() + 1e-9
        z = float(((counts[top] - expected[top]) / deviation).abs().max())
        assert z < MAX_Z, f"a count is {z} standard deviations from its expectation"
        name = f"temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}"
        found[name] = {"support": int((expected > 0).sum()), "max_z": z}
        say(f"sampler, {name}: {found[name]['support']} tokens, largest deviation {z:.1f} sigma")
    return found


def _distribution(scores: Tensor, top_k: int, top_p: float, min_p: float, keep: int) -> Tensor:
    if top_k:
        scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
    if top_p < 1:
        values, order = scores.sort(stable=True)
        is_removed = values.softmax(-1).cumsum(-1) <= 1 - top_p
        is_removed[-keep:] = False
        scores[order[is_removed]] = -torch.inf
    if min_p:
        probs = scores.softmax(-1)
        scores[probs < min_p * probs.max()] = -torch.inf
    return scores.softmax(-1)


def quantized() -> dict[str, Any]:
    """Linear layers with weights of fewer bits against float64, at sizes of mini, in each kernel."""
    worst: dict[str, float] = {}
    kernels = TritonWeights()
    for bits in (8, 4):
        for outputs, inputs in QUANTIZED_SIZES:
            weight = quantize(torch.randn(outputs, inputs), bits).to(torch.device("cuda"))
            packed = kernels.pack(weight)
            for dtype in (torch.bfloat16, torch.float16):
                x = torch.randn(max(QUANTIZED_ROWS), inputs, device="cuda").to(dtype)
                expected = x.double() @ weight.dequantized().to(dtype).double().T
                for rows in QUANTIZED_ROWS:
                    found = packed.multiply(x[:rows].contiguous()).double()
                    error = float((found - expected[:rows]).norm() / expected[:rows].norm())
                    assert error < NORM_BOUND[dtype], f"{rows} rows of {inputs}, int{bits}: relative error {error}"
                    name = f"int{bits}, {rows} rows, {str(dtype).removeprefix('torch.')}"
                    worst[name] = max(worst.get(name, 0.0), error)
        problem = problem_of_pack(kernels, bits, torch.bfloat16, torch.device("cuda"))  # also the forms of checkpoints
        assert problem is None, problem
        say(f"int{bits}: right; largest relative error {max(worst.values()):.1e}")
    return worst


def parity(quantization: str = NO_QUANTIZATION) -> dict[str, Any]:
    """Random requests over all parameters in float32, token for token with transformers on the CPU."""
    from tests.engine.parity import COMPANY, Parity, cases
    from tests.random_checkpoint import Shape

    torch.backends.cuda.matmul.allow_tf32 = False
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        fuzz = Parity(Path(directory), Shape(num_layers=3), device="cuda", quantization=quantization)
        drawn, until = cases(fuzz.loaded, 5), time.time() + PARITY_S
        while time.time() < until:
            for verdict, case, ours, theirs in fuzz.run([next(drawn) for _ in range(COMPANY)]):
                counts[verdict] += 1
                if verdict == "differs":
                    say("DIFFERS", case.given, str(ours)[:400], str(theirs)[:400])
        fuzz.close()
    say("parity in float32:", dict(counts))
    write(dict(counts))
    assert not counts["differs"]
    return dict(counts)


if __name__ == "__main__":
    checks = {"kernels": kernels, "sampler": sampler, "quantized": quantized, "parity": parity}
    write(checks[sys.argv[1]](*sys.argv[2:-1]))
