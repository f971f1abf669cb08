"""Each kernel of a device against the reference, on small random inputs of a model's shapes, before the model is used.

A kernel that differs, or does not compile for this device, is replaced by the reference.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.kernels.contract import (
    ADD_LOW_RANK,
    BLOCKED_FORMS,
    MAX_SHORT_QUERIES,
    PAGE_RANK,
    ROWS_PER_TILE,
    AdaptedTiles,
    Bits,
    BlockedWeight,
    DeviceKernels,
    GatheredQueries,
    PackedWeight,
    PagedLowRank,
    PagedQueries,
    Weight,
    WeightKernels,
)
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCache, KvCacheDtype, rounded
from phi3_serve.engine.kernels.quantize import quantize_in_torch, quantize_to_fp8
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE

logger = logging.getLogger("phi3_serve")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}  # absolute and relative, for each number
NUM_TOKENS = 21
NO_QUERIES = (0, 0)
# (queries, end); see PagedQueries.sequences
CHUNKS = ((1, 1), (1, 16), (1, 33), NO_QUERIES, (5, 40), (21, 21), (30, 75))
PADDING_TILES = 256
SMALL_WINDOW = 20  # keys
ADAPTED_ROWS = (20, 3, 4, 11, 0, 19, 8, 7)
ADAPTED_TILES = ((0, 4, 1, 1), (4, 1, 2, 3), (5, 3, 3, 2))  # (first row, rows, first page, pages); then padding
ADAPTER_PAGES = ((9, 0.0), (2, 1.0), (0, -0.5), (3, 2.0), (1, 0.7))  # (page, strength)
NUM_PAGES = 4
PACKED_OUTPUTS, PACKED_INPUTS = 209, 353  # no multiples of anything that a kernel packs together
BLOCKED_INPUTS, INPUTS_OF_BLOCK = 320, 64
FP8_OUTPUTS, FP8_INPUTS = 256, 512
# A GPU has a kernel for one row, three for tiles of few rows, and torch for many.
PACKED_ROWS = (1, 5, NUM_TOKENS, 70, 150)
EPSILON = 1.0  # of the norm; so large that its absence shows

_REFERENCE = ReferenceKernels()


@dataclass(frozen=True, slots=True)
class Finding:
    """A kernel that cannot be used."""

    kernel: str  # its name in ``contract.DeviceKernels``
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What the kernels see of a model."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int  # dimensions of a head that rotate
    hidden_size: int
    intermediate_size: int
    window: int | None  # how many keys a query sees; None: all


class _Inputs:
    """The same random numbers for every kernel that is checked."""

    def __init__(
        self, shape: ModelShape, device: torch.device, dtype: torch.dtype, kv_cache_dtype: KvCacheDtype
    ) -> None:
        self.shape = shape
        self.device = device
        self._dtype = dtype
        self._kv_cache_dtype = kv_cache_dtype
        self._generator = torch.Generator(device).manual_seed(0)

    def random(self, *size: int) -> Tensor:
        """Normally distributed numbers."""
        return torch.randn(size, generator=self._generator, device=self.device).to(self._dtype)

    def qkv_and_cache(self, num_tokens: int, num_slots: int) -> tuple[Tensor, KvCache]:
        """Queries, keys and values, and a cache whose slots are all written."""
        s = self.shape
        qkv = self.random(num_tokens, s.num_heads + 2 * s.num_kv_heads, s.head_dim)
        cache = self.random(2 * s.num_kv_heads, num_slots, s.head_dim)
        if self._kv_cache_dtype == "auto":
            return qkv, KvCache(cache)
        return qkv, KvCache(*rounded(cache, EIGHT_BITS[self._kv_cache_dtype]))

    def integers(self, values: Sequence[object]) -> Tensor:
        """int32 on the device."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)


_Check = Callable[[DeviceKernels, _Inputs], tuple[Tensor, ...]]  # calls a kernel and returns all that it wrote


def _add_rms_norm(kernels: DeviceKernels, inputs: _Inputs) -> tuple[Tensor, ...]:
    width = inputs.shape.hidden_size
    hidden, delta, weight = (inputs.random(*size) for size in ((NUM_TOKENS, width), (NUM_TOKENS, width), (width,)))
    return kernels.add_rms_norm(hidden, delta, weight, EPSILON), hidden


def _rotate_and_store(kernels: DeviceKernels, inputs: _Inputs) -> tuple[Tensor, ...]:
    num_slots = 4 * BLOCK_SIZE
    qkv, cache = inputs.qkv_and_cache(NUM_TOKENS, num_slots)
    cosine, sine = (inputs.random(NUM_TOKENS, 1, inputs.shape.rotary_dim) for _ in range(2))
    slots = inputs.integers([0, -1, *range(num_slots - 1, num_slots - NUM_TOKENS + 1, -1)])
    if cache.scales is None:
        kernels.rotate_and_store(qkv, (cosine, sine), slots, cache)
        return qkv, cache.values
    # Rotated keys differ in their last bits, and one on the edge between two values would fall to either side.
    same = qkv.clone()
    kernels.rotate_and_store(same, (torch.ones_like(cosine), torch.zeros_like(sine)), slots, cache)
    stored = torch.stack(cache.read(torch.arange(num_slots, device=qkv.device)))
    kernels.rotate_and_store(qkv, (cosine, sine), slots, cache)
    return qkv, stored


def _silu_product(kernels: DeviceKernels, inputs: _Inputs) -> tuple[Tensor, ...]:
    return (kernels.silu_product(inputs.random(NUM_TOKENS, 2 * inputs.shape.intermediate_size)),)


def _attend(kernels: DeviceKernels, inputs: _Inputs) -> tuple[Tensor, ...]:
    """With few tiles, whose keys several programs share, and with so many that each has one program."""
    window = inputs.shape.window
    chunks = [*CHUNKS]
    if window is not None:
        chunks += [(count, window + 5 * BLOCK_SIZE) for count in (2, 30)]
    num_blocks = sum(-(-end // BLOCK_SIZE) for _, end in chunks)
    qkv, cache = inputs.qkv_and_cache(sum(count for count, _ in chunks), BLOCK_SIZE * num_blocks)

    def attended(qkv: Tensor, chunks: Sequence[tuple[int, int]], padding: int) -> Tensor:
        queries = _paged_queries(kernels, inputs, chunks, padding)
        return kernels.attend(qkv, cache, queries, inputs.shape.head_dim**-0.5, window)

    alone = (attended(qkv[:count], [(count, end)], 0) for count, end in (CHUNKS[2], chunks[-1]))
    return *alone, attended(qkv, chunks, 0), attended(qkv, chunks, PADDING_TILES)


def _attend_in_window(kernels: DeviceKernels, inputs: _Inputs) -> tuple[Tensor, ...]:
    """Long chunks, one of which begins behind a window that is smaller than that of a model."""
    chunks = [(count, end) for count, end in CHUNKS if count > MAX_SHORT_QUERIES]
    num_blocks = sum(-(-end // BLOCK_SIZE) for _, end in chunks)
    qkv, cache = inputs.qkv_and_cache(sum(count for count, _ in chunks), BLOCK_SIZE * num_blocks)
    queries = _paged_queries(kernels, inputs, chunks, 0)
    return (kernels.attend(qkv, cache, queries, inputs.shape.head_dim**-0.5, SMALL_WINDOW),)


def _paged_queries(
    kernels: DeviceKernels, inputs: _Inputs, chunks: Sequence[tuple[int, int]], padding: int
) -> PagedQueries:
    """The blocks are used from the last one to the first one. ``padding``: tiles of each kind without a query."""
    sequences: list[tuple[int, ...]] = []
    tiles: tuple[list[tuple[int, int]], ...] = ([], [])  # short and long
    gathered: list[GatheredQueries] = []
    row = num_blocks = 0
    for number, (count, end) in enumerate(chunks):
        sequences.append((row, count, end, num_blocks))
        is_long = count > MAX_SHORT_QUERIES
        if is_long and kernels.gathers(count, end):
            gathered.append(GatheredQueries(row, count, end, num_blocks))
        else:
            size = kernels.queries_per_tile[is_long]
            tiles[is_long].extend((number, first) for first in range(0, max(1, count), size))
        row += count
        num_blocks += -(-end // BLOCK_SIZE)
    if padding:
        for of_kind in tiles:
            of_kind.extend([(chunks.index(NO_QUERIES), 0)] * padding)
    sequences_and_blocks = inputs.integers(sequences), inputs.integers(range(num_blocks - 1, -1, -1))
    short, long = (inputs.integers(of_kind).view(-1, 2) for of_kind in tiles)
    return PagedQueries(*sequences_and_blocks, short, long, tuple(gathered))


def _add_low_rank(kernels: DeviceKernels, inputs: _Inputs) -> tuple[Tensor, ...]:
    """With tiles of both sizes. The last page does not change the layer."""
    width = inputs.shape.hidden_size
    x = inputs.random(NUM_TOKENS, width) / width**0.5
    a, b = (inputs.random(NUM_PAGES, PAGE_RANK, width) for _ in range(2))
    a[-1] = b[-1] = torch.nan
    scalings = torch.tensor([0.5, 2.0, -1.0, 0.0], device=inputs.device)
    strengths = torch.tensor([strength for _, strength in ADAPTER_PAGES]).view(torch.int32).tolist()
    pages = [(page, strength) for (page, _), strength in zip(ADAPTER_PAGES, strengths, strict=True)]
    tiles = (inputs.integers([*ADAPTED_TILES, (0, 1, 0, 1)]), inputs.integers(pages))
    most = max(count for *_, count in ADAPTED_TILES)
    results = []
    for rows_per_tile in ROWS_PER_TILE:
        rows, count = inputs.integers(ADAPTED_ROWS), inputs.integers([len(ADAPTED_TILES)])
        results.append(inputs.random(NUM_TOKENS, width))
        adapted = AdaptedTiles(rows, count, *tiles, rows_per_tile=rows_per_tile, pages_per_tile=most)
        kernels.add_low_rank(x, results[-1], PagedLowRank(a, b, scalings), adapted)
    return tuple(results)


_CHECKS: dict[str, _Check] = {
    "add_rms_norm": _add_rms_norm,
    "rotate_and_store": _rotate_and_store,
    "silu_product": _silu_product,
    "attend": _attend,
    ADD_LOW_RANK: _add_low_rank,
}


def check_kernels(
    kernels: DeviceKernels,
    shape: ModelShape,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kv_cache_dtype: KvCacheDtype = "auto",
) -> list[Finding]:
    """The kernels that differ from the reference or fail, with a warning in the log for each.

    Raises:
        torch.AcceleratorError: the device has failed. Nothing can run on it any more.
        RuntimeError: the device has no memory for the check; that is no fault of a kernel.
    """
    findings = []
    for name, check in _CHECKS.items():
        inputs, same = (_Inputs(shape, device, dtype, kv_cache_dtype) for _ in range(2))
        problem = _problem(check, kernels, inputs, same)
        if problem is not None:
            findings.append(Finding(name, problem))
            logger.warning("The kernel %s is replaced by a slower one: %s", name, problem)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # an error that Triton has reported as its own is raised here again
    return findings


def problem_of_attention(
    kernels: DeviceKernels, shape: ModelShape, *, device: torch.device, dtype: torch.dtype
) -> str | None:
    """How the attention of ``kernels`` differs from the reference, or why there is none; None if they agree.

    Long chunks are checked with a small window, too.

    Raises:
        torch.AcceleratorError: the device has failed. Nothing can run on it any more.
        RuntimeError: the device has no memory for the check; that is no fault of a kernel.
    """
    for check in (_attend, _attend_in_window):
        problem = _problem(check, kernels, *(_Inputs(shape, device, dtype, "auto") for _ in range(2)))
        if problem is not None:
            return problem
    return None


def problem_of_pack(kernels: WeightKernels, bits: Bits, dtype: torch.dtype, device: torch.device) -> str | None:
    """How the products with a packed weight differ from the reference, or why there are none; None if they agree.

    Raises:
        torch.AcceleratorError: the device has failed. Nothing can run on it any more.
        RuntimeError: the device has no memory for the check; that is no fault of a kernel.
    """
    generator = torch.Generator().manual_seed(0)
    of_one_level = quantize_in_torch(torch.randn(PACKED_OUTPUTS, PACKED_INPUTS, generator=generator), bits)
    weights: list[Weight] = [of_one_level, *_blocked(bits, generator)]
    pairs = ((partial(kernels.pack, weight), _REFERENCE.pack(weight)) for weight in (w.to(device) for w in weights))
    return _problem_of_products(pairs, dtype, device)


def problem_of_fp8(kernels: WeightKernels, dtype: torch.dtype, device: torch.device) -> str | None:
    """The same for weights in float8, of sizes that a kernel packs together and others."""
    generator = torch.Generator().manual_seed(0)
    weights = [
        quantize_to_fp8(torch.randn(*size, generator=generator)).to(device)
        for size in ((PACKED_OUTPUTS, PACKED_INPUTS), (FP8_OUTPUTS, FP8_INPUTS))
    ]
    pairs = ((partial(kernels.pack_fp8, weight), _REFERENCE.pack_fp8(weight)) for weight in weights)
    return _problem_of_products(pairs, dtype, device)


def _problem_of_products(
    pairs: Iterable[tuple[Callable[[], PackedWeight], PackedWeight]], dtype: torch.dtype, device: torch.device
) -> str | None:
    """How the products with weights that are packed differ from those of the reference, or why there are none."""
    try:
        worst = max(_excess_of_products(pack(), reference, dtype, device) for pack, reference in pairs)
    except Exception as error:
        if kind_of(error) != "other":
            raise
        return f"{type(error).__name__}: {error}"
    return None if worst <= 1 else f"it differs from the reference by {worst:.3g} times the tolerance"


def _excess_of_products(
    packed: PackedWeight, reference: PackedWeight, dtype: torch.dtype, device: torch.device
) -> float:
    inputs = reference.unpacked().values.shape[1]
    x = torch.randn(max(PACKED_ROWS), inputs, generator=torch.Generator().manual_seed(0)) / inputs**0.5
    x = x.to(device, dtype)
    expected = reference.multiply(x)
    return max(_excess(packed.multiply(x[:rows].contiguous()), expected[:rows]) for rows in PACKED_ROWS)


def _blocked(bits: Bits, generator: torch.Generator) -> Iterator[BlockedWeight]:
    """Weights of each form that checkpoints have in ``bits`` bits, normally distributed as far as it matters."""

    def integers(least: int, most: int, inputs: int) -> Tensor:
        size = (PACKED_OUTPUTS, inputs)
        return torch.randint(least, most + 1, size, dtype=torch.int8, generator=generator)

    blocks = BLOCKED_INPUTS // INPUTS_OF_BLOCK
    for group, has_minima in BLOCKED_FORMS[bits]:
        scales = torch.full((PACKED_OUTPUTS, blocks), 0.25 / 2**bits).half()
        steps = [integers(1, 15, BLOCKED_INPUTS // group) for _ in range(2)]
        values = integers(0, 15, BLOCKED_INPUTS) if bits == 4 else integers(-128, 127, BLOCKED_INPUTS)
        yield BlockedWeight(bits, values, scales, steps[0], *((scales * 8, steps[1]) if has_minima else ()))


def _problem(check: _Check, kernels: DeviceKernels, inputs: _Inputs, same_inputs: _Inputs) -> str | None:
    expected = check(_REFERENCE, same_inputs)
    try:
        found = check(kernels, inputs)
        worst = max(_excess(*pair) for pair in zip(found, expected, strict=True))
    except Exception as error:
        if kind_of(error) != "other":
            raise
        return f"{type(error).__name__}: {error}"
    return None if worst <= 1 else f"it differs from the reference by {worst:.3g} times the tolerance"


def _excess(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in tolerances; infinite if a number is nan."""
    tolerance = TOLERANCE[expected.dtype] * (1 + expected.float().abs())
    return float(((found.float() - expected.float()).abs() / tolerance).nan_to_num(torch.inf).max())


class KernelsWithFallbacks:
    """``contract.DeviceKernels`` with the reference for some kernels.

    The reference may wait for the device, so its kernels cannot be captured in a CUDA graph.
    """

    def __init__(self, kernels: DeviceKernels, replaced: Mapping[str, str]) -> None:
        """``replaced``: the names of the kernels that the reference replaces, and the reasons."""

        def home(name: str) -> DeviceKernels:
            return _REFERENCE if name in replaced else kernels

        self.name = kernels.name
        self.replaced: Mapping[str, str] = {**kernels.replaced, **replaced}
        self.queries_per_tile = kernels.queries_per_tile
        self.add_rms_norm = home("add_rms_norm").add_rms_norm
        self.rotate_and_store = home("rotate_and_store").rotate_and_store
        self.silu_product = home("silu_product").silu_product
        self.attend = home("attend").attend
        self.flash_attention = home("attend").flash_attention
        self.gathers = home("attend").gathers
        self.add_low_rank = home(ADD_LOW_RANK).add_low_rank


def with_fallbacks(kernels: DeviceKernels, findings: Sequence[Finding]) -> DeviceKernels:
    """``kernels``, with the reference for exactly those that ``findings`` name."""
    if not findings:
        return kernels
    return KernelsWithFallbacks(kernels, {finding.kernel: finding.problem for finding in findings})
