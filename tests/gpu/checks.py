"""Whether a GPU computes what it should: kernels against the reference, draws, answers against transformers."""

import platform
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
import triton
from torch import Tensor

from phi3_serve.bench.shapes import Model, as_loaded, build
from phi3_serve.catalogue import EMBEDDED_TINY, NO_QUANTIZATION
from phi3_serve.core.engine_event import EngineEvent, Finished
from phi3_serve.core.event import Failed
from phi3_serve.engine.adapters.pages import PageLayout
from phi3_serve.engine.device import compute_capability, gpu_info
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.engine_core import EngineCore
from phi3_serve.engine.kernels.contract import (
    MAX_SHORT_QUERIES,
    PAGE_RANK,
    ROWS_PER_TILE,
    AdaptedTiles,
    Fp8Weight,
    PagedLowRank,
    PagedQueries,
)
from phi3_serve.engine.kernels.cuda import CudaKernels
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCache, KvCacheDtype, rounded
from phi3_serve.engine.kernels.quantize import quantize_to_fp8
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import PADDING_TILES, problem_of_fp8, problem_of_pack
from phi3_serve.engine.kernels.triton_low_rank import add_low_rank
from phi3_serve.engine.kernels.triton_quantized import TritonWeights
from phi3_serve.engine.kernels.triton_sampling import PackedRow, choose_tokens, packed
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes, FittingSizes
from phi3_serve.engine.model.select import RunnerFactory, new_runner
from phi3_serve.engine.precision import problem_of_kv_cache_dtype, problem_of_quantization
from phi3_serve.engine.quantization import round_weight
from phi3_serve.engine.sampling.device_sampler import ChosenTokens, DeviceSampler
from phi3_serve.engine.sampling.processors import ScoreRow, ScoreSettings, process
from phi3_serve.engine.sampling.triton_chooser import TritonChooser
from phi3_serve.engine.sampling.warpers import warp
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve
from tests.gpu.report import say, write

PARITY_S = 30.0
QUANTIZED_SIZES = [(9216, 3072), (3072, 8192)]
# (inputs, outputs) of layers of mini and of medium
ADAPTED_SIZES = [(3072, 9216), (8192, 3072), (5120, 35_840), (17_920, 5120)]
ADAPTED_ROWS = 40  # the first ten have an adapter each, in two pages; the others, every second of them, one in one page
NUM_ADAPTERS, NUM_ADAPTED = 6, 24
QUANTIZED_ROWS = (1, 2, 16, 33, 100, 200)  # those of one row, of tiles of 16 to 64 rows, and dequantised
NORM_BOUND = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}  # of the error, relative
NUMBER_BOUND = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}  # of a single number
ROUNDING_BOUND = 0.06  # of what fp8 makes of a row, relative; each number errs by 2.3 % and each weight, too
STORED_BOUND = 1e-2  # of keys and values in 8 bits, relative
TEXT = "<|user|>\nWhat is 3 plus 4?<|end|>\n<|assistant|>\n3 plus 4 is 7.<|end|>\n"
# Of phi-3-tiny's scores in fp8. Activations on an edge between two values fall to either side: bfloat16 is 0.03 from float32.
SCORES_BOUND = 0.1
NUM_BLOCKS = 600
# (queries, end): decoded tokens, drafts, chunks of prompts with and without a prefix, padding
CHUNKS = [(1, 1), (1, 16), (1, 17), (5, 40), (8, 300), (1, 2100), (70, 70), (200, 700), (300, 2500), (0, 0)]
# heads, heads of the keys, dimensions, dtypes
SHAPES = [
    (32, 32, 96, (torch.bfloat16,)),
    (40, 10, 128, (torch.bfloat16,)),
    (4, 2, 32, (torch.float32, torch.float16)),
]
DRAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 10},
    {"top_p": 0.9},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    {"typical_p": 0.6},
    {"temperature": 0.9, "epsilon_cutoff": 3e-4},
    {"eta_cutoff": 2e-3},
    {"top_k": 500, "top_p": 0.95, "typical_p": 0.9, "eta_cutoff": 1e-3},
]
NUM_DRAWS, VOCAB = 4096, 32_064
PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"encoder_repetition_penalty": 0.7, "repetition_penalty": 0.9},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7, "repetition_penalty": 1.1},
    {"suppress_tokens": [6], "sequence_bias": [((7,), 2.0)], "presence_penalty": 1.0},
    {"eos_token_id": 8, "min_new_tokens": 20, "begin_suppress_tokens": [5, 7], "frequency_penalty": 0.3},
]
PENALISED_STEPS = 40
CONTEXT = 4096  # most tokens of a request
MAX_Z = 4.5  # of the counts of the most likely tokens


def card() -> dict[str, Any]:
    """What the figures were measured on. It fails at once where nothing can run."""
    properties: Any = torch.cuda.get_device_properties(0)  # not all of it is declared
    free, total = torch.cuda.mem_get_info()
    ones = torch.ones(1024, 1024, device="cuda", dtype=torch.float16)
    assert float((ones @ ones)[0, 0]) == 1024.0
    found = {
        "name": properties.name,
        "compute_capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "shared_memory_per_block": properties.shared_memory_per_block_optin,
        "memory": total,
        "memory_free": free,
        "readings": asdict(gpu_info()),  # without nvidia-ml-py, of the memory alone
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
            "triton": triton.__version__,
        },
    }
    for name, value in found.items():
        say(f"{name}: {value}")
    return found


def kernels() -> dict[str, Any]:
    """Each kernel against the reference; attention against the reference in float64."""
    torch.backends.cuda.matmul.allow_tf32 = False
    worst: dict[str, float] = {}
    for heads, kv_heads, dim, dtypes in SHAPES:
        for dtype in dtypes:
            ours = CudaKernels(num_heads=heads, num_kv_heads=kv_heads, dtype=dtype, device=torch.device("cuda"))
            cache = torch.randn(2 * kv_heads, NUM_BLOCKS * 16, dim, device="cuda").to(dtype)
            name = f"{heads}/{kv_heads} heads of {dim}, {str(dtype).removeprefix('torch.')}"
            worst[name] = _check_attention(ours, KvCache(cache), heads, dtype)
            _check_layers(ours, cache, heads, dtype)
            say(f"kernels, {name}: right; relative error of attention {worst[name]:.1e}")
    return worst


def caches(device: str = "cuda") -> dict[str, Any]:
    """Keys and values in 8 bits: attention against float64 over what they mean, and what is stored."""
    torch.backends.cuda.matmul.allow_tf32 = False
    worst: dict[str, float] = {}
    for stored_as, stored in EIGHT_BITS.items():
        if problem := problem_of_kv_cache_dtype(stored_as, compute_capability(torch.device(device))):
            say(f"cache in {stored_as}: not checked: {problem}")
            continue
        for heads, kv_heads, dim, dtypes in SHAPES:
            for dtype in dtypes:
                ours = CudaKernels(num_heads=heads, num_kv_heads=kv_heads, dtype=dtype, device=torch.device(device))
                cache = KvCache(*rounded(torch.randn(2 * kv_heads, NUM_BLOCKS * 16, dim, device=device), stored))
                name = f"{stored_as}, {heads}/{kv_heads} heads of {dim}, {str(dtype).removeprefix('torch.')}"
                worst[name] = _check_attention(ours, cache, heads, dtype, [None if heads == kv_heads else 64])
                error = _error_of_stored(ours, cache, heads, dtype)
                assert error < STORED_BOUND, f"cache in {name}: what is stored differs by {error}"
                say(
                    f"cache in {name}: right; relative error of attention {worst[name]:.1e}, of what is stored {error:.1e}"
                )
    return worst


def _error_of_stored(ours: CudaKernels, cache: KvCache, heads: int, dtype: torch.dtype) -> float:
    """Of the rotated keys and the values in the cache; one in the middle of two steps may fall to either."""
    kv_heads, dim = cache.num_kv_heads, cache.values.shape[-1]
    rotation = [torch.randn(37, 1, dim, device=cache.device).to(dtype) for _ in range(2)]
    qkv = torch.randn(37, heads + 2 * kv_heads, dim, device=cache.device).to(dtype)
    slots = torch.randperm(NUM_BLOCKS * 16, device=cache.device)[:37].int()
    found = []
    for kernels in (ours, ReferenceKernels()):
        kernels.rotate_and_store(qkv.clone(), (rotation[0], rotation[1]), slots, cache)
        found.append(torch.cat(cache.read(slots.long())).double())
    return float((found[0] - found[1]).norm() / found[1].norm())


def _check_attention(
    ours: CudaKernels,
    cache: KvCache,
    heads: int,
    dtype: torch.dtype,
    windows: Sequence[int | None] = (None, 64, 2047),
) -> float:
    """The relative error against float64 over the numbers that ``cache`` means."""
    few, rows = _queries(ours.queries_per_tile, cache.device)
    # Programs do not share keys when there are many tiles, and that is another kernel.
    many, _ = _queries(ours.queries_per_tile, cache.device, PADDING_TILES)
    dim = cache.values.shape[-1]
    qkv = torch.randn(rows, heads + 2 * cache.num_kv_heads, dim, device=cache.device).to(dtype)
    meant = cache.values.double() if cache.scales is None else cache.values.double() * cache.scales[..., None].double()
    scale, worst = dim**-0.5, 0.0
    for window in windows:  # each is compiled anew
        for queries in (few, many) if window == windows[-1] else (few,):
            theirs = ReferenceKernels().attend(qkv.double(), KvCache(meant), queries, scale, window)
            mine = ours.attend(qkv, cache, queries, scale, window).double()
            error = float((mine - theirs).norm() / theirs.norm())
            assert error < NORM_BOUND[dtype], f"attention with window {window}: relative error {error}"
            worst = max(worst, error)
    return worst


def _queries(queries_per_tile: tuple[int, int], device: torch.device, padding: int = 0) -> tuple[PagedQueries, int]:
    """Those of ``CHUNKS`` and their number, and so many tiles of each kind without a query."""
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
    for of_kind in (short, long):
        of_kind += [(CHUNKS.index((0, 0)), 0)] * padding
    of_sequences, of_tables, *of_tiles = (
        torch.tensor(part, dtype=torch.int32, device=device) for part in (sequences, tables, short, long)
    )
    return PagedQueries(of_sequences, of_tables, of_tiles[0], of_tiles[1]), row


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
        kernels.rotate_and_store(results[-1][0], rotation, slots, KvCache(results[-1][1]))
    torch.testing.assert_close(
        results[0][0][:, : heads + kv_heads], results[1][0][:, : heads + kv_heads], rtol=bound, atol=bound
    )
    torch.testing.assert_close(results[0][1], results[1][1], rtol=bound, atol=bound)


def sampler() -> dict[str, Any]:
    """No draw outside the support of the warpers; counts of the most likely tokens near their expectation."""
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    no_counts = torch.empty(0, dtype=torch.int32, device="cuda")
    logits = (torch.randn(1, VOCAB, device="cuda") * 3).bfloat16().expand(NUM_DRAWS, VOCAB).contiguous()
    for given in DRAWS:
        settings = _settings(given)
        arrays = packed([PackedRow(settings.parameters)] * NUM_DRAWS)
        floats, ints, *edits = (torch.from_numpy(array).cuda() for array in arrays)
        tokens = torch.empty(NUM_DRAWS, dtype=torch.int32, device="cuda")
        choose_tokens(
            logits, floats, ints, (edits[0], edits[1]), no_counts, torch.tensor([5, 9], device="cuda"), tokens
        )
        expected = NUM_DRAWS * warp(logits[:1].double(), [settings]).softmax(-1)[0]
        counts = torch.bincount(tokens.long(), minlength=VOCAB).double()
        assert not counts[expected == 0].any(), "a token was drawn that the warpers rule out"
        top = expected.topk(20).indices
        deviation = (expected[top] * (1 - expected[top] / NUM_DRAWS)).sqrt() + 1e-9
        z = float(((counts[top] - expected[top]) / deviation).abs().max())
        assert z < MAX_Z, f"a count is {z} standard deviations from its expectation"
        name = ", ".join(f"{parameter} {value}" for parameter, value in given.items()) or "no warper"
        found[name] = {"support": int((expected > 0).sum()), "max_z": z}
        say(f"sampler, {name}: {found[name]['support']} tokens, largest deviation {z:.1f} sigma")
    found["penalties"] = _check_penalties()
    say(f"sampler, penalties: {found['penalties']} greedy tokens are those of the host")
    return found


def _check_penalties() -> int:
    """Greedy tokens of steps that are launched before the last one's are read, against the host's processors.

    Returns how many were compared.
    """
    device = torch.device("cuda")
    settings = [_settings({"do_sample": False, **given}) for given in PENALTIES]
    sequences = [CachedSequence([5]) for _ in settings]
    sampler = DeviceSampler(
        torch.zeros(len(settings), dtype=torch.int32, device=device), TritonChooser(device), vocab_size=VOCAB
    )
    launched: list[tuple[Tensor, ChosenTokens]] = []
    for step in range(PENALISED_STEPS + 1):
        if step < PENALISED_STEPS:
            logits = torch.randn(len(settings), VOCAB, device=device).mul(3).bfloat16()
            logits[:, 5:9] += 9  # so that tokens come again
            launched.append((logits, sampler.launch(logits, settings, sequences)))
            for index, sequence in enumerate(sequences):
                sequence.expect_token(index)
        if step > 0:
            logits, tokens = launched.pop(0)
            scores = logits.float().cpu()
            process(scores, [ScoreRow(of, s.tokens, 0) for of, s in zip(settings, sequences, strict=True)], logits)
            found = tokens.read()
            assert found == scores.argmax(-1).tolist(), f"step {step}"
            for sequence, token in zip(sequences, found, strict=True):
                sequence.append(token)
    assert all(len(set(sequence.tokens)) < PENALISED_STEPS for sequence in sequences)
    return PENALISED_STEPS * len(settings)


def _settings(given: dict[str, Any]) -> ScoreSettings:
    wanted = GenerationParameters(**{"do_sample": True, "top_k": 0, **given})
    parameters = resolve(wanted, GenerationParameters())
    return ScoreSettings(prepare("", (5,), parameters, context_length=CONTEXT, timeout_s=600, stream=False))


def memory(shape: str = "mini", device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """An engine that takes all memory, as a server does, has enough of it for its largest steps, and all kernels."""
    began = time.monotonic()
    model = build(Model(shape, device, dtype))
    core = EngineCore(as_loaded(model), FittingSizes(prefix_cache=False), releases_weights=True)
    ready_s = time.monotonic() - began
    sizes, asked = core.sizes, 0
    for given, prompt_tokens, count in (
        ({"do_sample": False}, 2 * sizes.token_budget - 40, 20),
        # The host draws these, over the whole vocabulary.
        (
            {"do_sample": True, "top_k": 0, "typical_p": 0.9, "eta_cutoff": 1e-6, "no_repeat_ngram_size": 50},
            20,
            sizes.max_rows,
        ),
        # The logits of the whole prompt.
        ({"do_sample": False, "prompt_logprobs": 1}, sizes.token_budget, 2),
        # They start in steps with those above.
        ({"do_sample": False, "num_beams": 4, "num_return_sequences": 4}, 40, 8),
    ):
        for _ in range(count):
            prompt = torch.randint(5, model.config.vocab_size, (prompt_tokens,)).tolist()
            parameters = resolve(GenerationParameters(**given, max_new_tokens=8), GenerationParameters())
            request = prepare(f"{asked}", prompt, parameters, context_length=CONTEXT, timeout_s=600, stream=False)
            core.scheduler.add(core.generation(request, _ignore))
            asked += 1
    finished = 0
    while core.scheduler.has_work:
        for _, event in core.run(core.schedule()).events:
            assert not isinstance(event, Failed), event.error
            finished += isinstance(event, Finished)
    core.close()
    assert finished == asked
    assert core.scheduler.budget.limit == core.scheduler.budget.most, "a step had too little memory"
    found: dict[str, Any] = {
        "ready_s": ready_s,
        "cuda_graphs": core.info.cuda_graphs,
        "flash_attention": core.info.flash_attention,
        "replaced_kernels": dict(core.info.replaced_kernels),
        "cache_tokens": sizes.num_blocks * BLOCK_SIZE,
        "token_budget": sizes.token_budget,
    }
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found["free at the end, of the GPU"] = free / total
    say("memory:", found)
    write(found)
    assert not found["replaced_kernels"], "the model works, but slower ones replace kernels or graphs"
    return found


def _ignore(event: EngineEvent) -> None:
    """The caller reads the events of a step."""


def quantized() -> dict[str, Any]:
    """Linear layers with weights of fewer bits against float64, at sizes of mini, in each kernel."""
    worst: dict[str, float] = {}
    kernels = TritonWeights()
    for bits in (8, 4):
        for outputs, inputs in QUANTIZED_SIZES:
            weight = round_weight(torch.randn(outputs, inputs, device="cuda"), f"int{bits}", torch.device("cuda"))
            assert not isinstance(weight, Fp8Weight)
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


def fp8(device: str = "cuda") -> dict[str, Any]:
    """Linear layers in fp8 against float64 over the rounded rows, at sizes of mini; and how far rounding moves them."""
    worst: dict[str, float] = {}
    if problem := problem_of_quantization("fp8", compute_capability(torch.device(device))):
        say(f"fp8: not checked, {problem}")
        return {"problem": problem}
    for outputs, inputs in QUANTIZED_SIZES:
        whole = torch.randn(outputs, inputs, device=device)
        weight = quantize_to_fp8(whole)
        packed = TritonWeights().pack_fp8(weight)
        for dtype in (torch.bfloat16, torch.float16):
            x = torch.randn(max(QUANTIZED_ROWS), inputs, device=device).to(dtype)
            x *= torch.logspace(-2, 1, len(x), device=device).to(dtype)[:, None]
            values, scales = rounded(x, weight.values.dtype)
            exact = x.double() @ whole.double().T
            expected = (values.double() * scales[:, None].double()) @ weight.dequantized().double().T
            for rows in QUANTIZED_ROWS:
                found = packed.multiply(x[:rows].contiguous()).double()
                errors = (found - expected[:rows]).norm(dim=1) / expected[:rows].norm(dim=1)
                name = f"{rows} rows, {str(dtype).removeprefix('torch.')}"
                worst[name] = max(worst.get(name, 0.0), float(errors.max()))
                assert worst[name] < NORM_BOUND[dtype], f"{name} of {inputs}: relative error {worst[name]}"
                rounding = float(((found - exact[:rows]).norm(dim=1) / exact[:rows].norm(dim=1)).max())
                worst["of rounding"] = max(worst.get("of rounding", 0.0), rounding)
    assert worst["of rounding"] < ROUNDING_BOUND
    problem = problem_of_fp8(TritonWeights(), torch.bfloat16, torch.device(device))
    assert problem is None, problem
    worst["scores against the CPU"] = _error_of_scores(device)
    assert worst["scores against the CPU"] < SCORES_BOUND
    say(
        f"fp8: right; rounding moves a row by {worst['of rounding']:.1e} at most, and scores are "
        f"{worst['scores against the CPU']:.1e} from those of the CPU"
    )
    return worst


def _error_of_scores(device: str) -> float:
    """Of phi-3-tiny, loaded in fp8 with bfloat16 activations, relative."""
    from training.modules import load_with_modules

    of_devices = []
    for on in ("cpu", device):
        loaded = load_with_modules(EMBEDDED_TINY, device=on, dtype="bfloat16", quantization="fp8")
        ids = torch.tensor([loaded.tokenizer(TEXT).input_ids], device=on)
        with torch.inference_mode():
            of_devices.append(loaded.model(ids).logits.double().cpu())
    expected, found = of_devices
    return float((found - expected).norm() / expected.norm())


def adapters(device: str = "cuda", make_runner: RunnerFactory = new_runner) -> dict[str, Any]:
    """The kernel of adapters against float64, at sizes of mini and medium; answers with adapters against the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = False
    worst: dict[str, float] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for inputs, outputs in ADAPTED_SIZES:
            for rows_per_tile in ROWS_PER_TILE:
                error = _error_of_adapters(inputs, outputs, dtype, rows_per_tile, device)
                name = f"{inputs} to {outputs}, {str(dtype).removeprefix('torch.')}"
                assert error < NORM_BOUND[dtype], f"adapters, {name}, tiles of {rows_per_tile}: relative error {error}"
                worst[name] = max(worst.get(name, 0.0), error)
    say(f"kernel of adapters: right; largest relative error {max(worst.values()):.1e}")
    return {**worst, "answers that differ": _differing_answers(device, make_runner)}


def _error_of_adapters(inputs: int, outputs: int, dtype: torch.dtype, rows_per_tile: int, device: str) -> float:
    num_pages = 22
    pages = [(page, 1.5) for page in range(20)] + [(20, -0.5)]
    bits = torch.tensor([strength for _, strength in pages]).view(torch.int32).tolist()
    others = list(range(10, ADAPTED_ROWS, 2))
    tiles = [(row, 1, 2 * row, 2) for row in range(10)]
    tiles += [(10 + at, min(rows_per_tile, len(others) - at), 20, 1) for at in range(0, len(others), rows_per_tile)]

    def integers(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    adapted = AdaptedTiles(
        integers([*range(10), *others]),
        integers([len(tiles)]),
        integers([*tiles, *[(0, 0, 0, 0)] * 5]),
        integers([(page, number) for (page, _), number in zip(pages, bits, strict=True)]),
        rows_per_tile,
        pages_per_tile=2,
    )
    a, b = (torch.randn(num_pages, PAGE_RANK, width, device=device).to(dtype) for width in (inputs, outputs))
    scalings = torch.rand(num_pages, device=device) + 0.5
    x, output = (torch.randn(ADAPTED_ROWS, width, device=device).to(dtype) for width in (inputs, outputs))
    expected = output.double()
    for row in [*range(10), *others]:
        for page, strength in pages[2 * row : 2 * row + 2] if row < 10 else pages[20:]:
            product = x[row].double() @ a[page].double().T @ b[page].double()
            expected[row] += product * float(scalings[page]) * strength
    add_low_rank(x, output, PagedLowRank(a, b, scalings), adapted)
    return float((output.double() - expected).norm() / expected.norm())


def _differing_answers(device: str, make_runner: RunnerFactory) -> int:
    """Of requests with mixes of more adapters than the device holds, in float32; equal scores may decide otherwise."""
    from tests.engine.adapters.drawing import applied, drawn
    from tests.engine.asking import Answer, request
    from tests.random_checkpoint import Shape, make

    draw = random.Random(3)
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), Shape(num_layers=3, hidden_size=128, num_heads=4, num_kv_heads=2), seed=1)
        loaded = [load("adapters", directory, None, device=name, dtype="float32") for name in ("cpu", device)]
    page = PageLayout(loaded[0].model.config, torch.float32).num_bytes
    sizes = EngineSizes(num_blocks=200, token_budget=128, max_rows=16, adapter_bytes=4 * page)
    engines = [Engine(loaded[0], sizes=sizes), Engine(loaded[1], sizes=sizes, make_runner=make_runner)]
    made = [drawn(loaded[0].model.config, 4 + 5 * number, number) for number in range(NUM_ADAPTERS)]
    forms = [[engine._core.runner.prepare_adapter(one) for one in made] for engine in engines]
    answers: list[list[Answer]] = [[], []]
    for number in range(NUM_ADAPTED):
        chosen = draw.sample(range(NUM_ADAPTERS), draw.choice((0, 1, 1, 2)))
        prompt = tuple(draw.randrange(700) for _ in range(draw.randint(2, 60)))
        asked = request(loaded[0], f"{number}", prompt=prompt, do_sample=False, max_new_tokens=24)
        for side, engine in enumerate(engines):
            with_adapters = replace(asked, adapters=applied(*(forms[side][one] for one in chosen)))
            answers[side].append(Answer(engine, with_adapters))
    pairs = [(ours.ids(), theirs.ids()) for theirs, ours in zip(*answers, strict=True)]
    for engine in engines:
        engine.close()
    differing: int = sum(ours != theirs for ours, theirs in pairs)
    say(f"answers with adapters: {differing} of {NUM_ADAPTED} differ from those of the CPU")
    assert differing <= 1
    return differing


def parity(quantization: str = NO_QUANTIZATION, kv_cache_dtype: KvCacheDtype = "auto") -> dict[str, Any]:
    """Random requests over all parameters in float32, token for token with transformers on the CPU."""
    from tests.engine.parity import COMPANY, Parity, cases
    from tests.random_checkpoint import Shape

    if problem := problem_of_kv_cache_dtype(kv_cache_dtype, torch.cuda.get_device_capability()):
        say(f"parity: not checked, {problem}")
        return {"problem": problem}
    torch.backends.cuda.matmul.allow_tf32 = False
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        fuzz = Parity(
            Path(directory),
            Shape(num_layers=3),
            device="cuda",
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
        )
        drawn, until = filter(_is_comparable, cases(fuzz.loaded, 5)), time.time() + PARITY_S
        while time.time() < until:
            for verdict, case, ours, theirs in fuzz.run([next(drawn) for _ in range(COMPANY)]):
                counts[verdict] += 1
                if verdict == "differs":
                    say("DIFFERS", case.given, str(ours)[:400], str(theirs)[:400])
        fuzz.close()
    say("parity in float32:", dict(counts))
    write(dict(counts))
    assert not counts["differs"]
    assert counts["equal"], "no answer was compared"
    return dict(counts)


def _is_comparable(case: Any) -> bool:
    """Whether this version of transformers answers as 5.23, whose answers the engine gives."""
    version = tuple(map(int, transformers.__version__.split(".")[:2]))
    return version >= (5, 23) or "encoder_repetition_penalty" not in case.given  # it applied to the first row only
