"""The key-value cache in 8 bits: what is stored, and attention over it, against torch over the numbers that it means."""

import random
import shutil
from array import array
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from phi3_serve.engine.kernels import kv_cache
from phi3_serve.engine.kernels.cpu import CpuKernels
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCache, rounded
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from tests.engine.kernels.test_cpu import NUM_BLOCKS, assert_close, drawn_rows

CPU = torch.device("cpu")
SLOTS = NUM_BLOCKS * BLOCK_SIZE
FP8 = torch.float8_e4m3fn
LOST_BITS = {torch.int8: 1 / 254, FP8: 2**-4}  # of the largest number, and of each number

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to have made kernels with")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def ours(each_level: str, dtype: torch.dtype) -> CpuKernels:
    kernels = select_kernels(CPU, dtype, 64)
    assert isinstance(kernels, CpuKernels), f"the kernels of level {each_level} were not built"
    return kernels


def drawn_cache(kv_heads: int, dim: int, stored: torch.dtype = torch.int8) -> KvCache:
    return KvCache(*rounded(torch.randn(2 * kv_heads, SLOTS, dim), stored))


@pytest.mark.parametrize("stored", EIGHT_BITS.values(), ids=str)
def test_the_error_is_half_a_step(stored: torch.dtype) -> None:
    numbers = torch.randn(5, 30, 96) * torch.logspace(-6, 6, 30)[:, None]
    values, scales = rounded(numbers, stored)
    meant = values.float() * scales[..., None]
    largest = numbers.abs().amax(-1, keepdim=True)
    bound = LOST_BITS[stored] * (largest if stored == torch.int8 else numbers.abs() + 2**-10 * largest)
    assert ((meant - numbers).abs() <= bound * (1 + 1e-5)).all()
    torch.testing.assert_close(meant.abs().amax(-1), largest[..., 0], rtol=1e-6, atol=0)


def test_halves_are_rounded_to_even_and_nothing_is_zero() -> None:
    numbers = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5], [0.0] * 6, [1e-31] * 6])
    values, scales = rounded(numbers, torch.int8)
    assert values.tolist() == [[127, 0, 2, 2, 0, -2], [0] * 6, [0] * 6]
    assert scales.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("moved_bytes", [1, kv_cache.MOVED_BYTES])
@pytest.mark.parametrize("stored", [torch.float32, *EIGHT_BITS.values()], ids=str)
def test_blocks_are_copied_with_their_scales(
    stored: torch.dtype, moved_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "MOVED_BYTES", moved_bytes)
    layers = [torch.randn(4, 6 * BLOCK_SIZE, 8) for _ in range(2)]
    parts = [(layer,) if stored == torch.float32 else rounded(layer, stored) for layer in layers]
    cache = KvCache(
        *(
            torch.stack([of.view(torch.int8) if of.itemsize == 1 else of for of in part])
            for part in zip(*parts, strict=True)
        )
    )
    cache = KvCache(cache.values.view(stored), cache.scales)
    slots = torch.arange(6 * BLOCK_SIZE).view(6, BLOCK_SIZE)
    before = [torch.stack(layer.read(slots)) for layer in cache.layers]
    cache.copy_blocks([(0, 1), (1, 2), (5, 3)])
    for layer, expected in zip(cache.layers, before, strict=True):
        assert torch.equal(torch.stack(layer.read(slots)), expected[:, :, [0, 0, 1, 5, 4, 5]])


def test_many_blocks_are_copied_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest step of a GPU leaves no memory for all keys of the blocks that beams copy."""
    between: list[int] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.Tensor.index_select:
                between.append(result.nbytes)
            return result

    cache = KvCache(torch.zeros(8, 4, 6 * BLOCK_SIZE, 8))
    of_layer = 4 * 3 * BLOCK_SIZE * 8 * 4  # three blocks
    monkeypatch.setattr(kv_cache, "MOVED_BYTES", 3 * of_layer)
    with Watch():
        cache.copy_blocks([(0, 1), (1, 2), (5, 3)])
    assert between == [3 * of_layer, 3 * of_layer, 2 * of_layer]


@compiled
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary"), [(4, 4, 64, 64), (4, 2, 96, 72), (3, 1, 17, 16)])
def test_what_the_cpu_stores(
    ours: CpuKernels, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary: int
) -> None:
    """Bit by bit what torch rounds the same rotated keys to. The last two tokens are nobody's."""
    qkv = torch.randn(9, heads + 2 * kv_heads, dim).to(dtype)
    qkv[3, heads + kv_heads :] = 0
    rotation = (torch.randn(9, 1, rotary).to(dtype), torch.randn(9, 1, rotary).to(dtype))
    slots = torch.randperm(SLOTS)[:7]
    cache = drawn_cache(kv_heads, dim)
    assert cache.scales is not None
    expected = KvCache(cache.values.clone(), cache.scales.clone())
    ours.rotate_and_store(qkv, rotation, slots, cache)
    expected.store(slots, qkv[:7, heads:])
    assert torch.equal(cache.values, expected.values)
    assert expected.scales is not None
    assert torch.equal(cache.scales, expected.scales)


@compiled
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_none(ours: CpuKernels, dtype: torch.dtype, number: float) -> None:
    slots = torch.arange(3)
    for kernels in (ours, ReferenceKernels()):
        qkv = torch.randn(3, 3, 64).to(dtype)
        qkv[1, 2, 40] = number
        cache = drawn_cache(1, 64)
        kernels.rotate_and_store(qkv, (torch.ones(3, 1, 64).to(dtype), torch.zeros(3, 1, 64).to(dtype)), slots, cache)
        keys, values = cache.read(slots)
        assert values[:, 1].isnan().any()
        assert keys.isfinite().all()
        assert values[:, [0, 2]].isfinite().all()


@compiled
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 96), (8, 2, 128), (3, 1, 40), (2, 2, 256), (2, 1, 17)]
)
@pytest.mark.parametrize("count", [9])
def test_attention_on_a_cpu(
    ours: CpuKernels, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, count: int
) -> None:
    rows = drawn_rows(random.Random(count * dim), count)
    cache = drawn_cache(kv_heads, dim)
    query = torch.randn(count + 3, heads + 2 * kv_heads, dim).to(dtype)[:, :heads]
    outputs = []
    for kernels in (ours, ReferenceKernels()):
        outputs.append(torch.full((count + 3, heads, dim), 7.0, dtype=dtype))
        kernels.of_rows(rows, cache).attend(query, cache, outputs[-1], dim**-0.5)
    assert_close(*outputs)
    alone = torch.full_like(outputs[0], 7.0)
    for row in rows:  # other rows change no bit
        ours.of_rows([row], cache).attend(query, cache, alone, dim**-0.5)
    assert torch.equal(alone, outputs[0])


@compiled
@pytest.mark.parametrize("window", [None, 9])
def test_the_borders_of_chunks_change_no_answer(ours: CpuKernels, dtype: torch.dtype, window: int | None) -> None:
    """The keys of a chunk are seen as they are stored, and every sum has the same order."""
    total, heads, kv_heads, dim = 45, 4, 2, 64
    qkv = torch.randn(total, heads + 2 * kv_heads, dim).to(dtype)
    sequence = CachedSequence([0] * total)
    sequence.block_table = array("i", [7, 2, 30])
    slots = torch.tensor([sequence.slot(position) for position in range(total)])
    cache = drawn_cache(kv_heads, dim)
    cache.store(slots, qkv[:, heads:])
    found = []
    for sizes in ([total], [20, 25], [3, 42], [7] * 6 + [3]):
        outputs, start = [], 0
        for size in sizes:
            sequence.num_cached = start
            plan = ours.plan_attention([Chunk(sequence, size, 1)], window=window, cache=cache)
            outputs.append(plan.attend(qkv[start : start + size].contiguous(), cache, dim**-0.5))
            start += size
        found.append(torch.cat(outputs))
    for other in found[1:]:
        assert torch.equal(found[0], other)
    whole = KvCache(torch.zeros(2 * kv_heads, SLOTS, dim))
    whole.values.copy_(torch.cat(cache.read(torch.arange(SLOTS))))
    sequence.num_cached = 0
    meant = ReferenceKernels().plan_attention([Chunk(sequence, total, 1)], window=window, cache=whole)
    stored = torch.cat([qkv[:, :heads].float(), torch.cat(whole.read(slots)).transpose(0, 1)], 1)
    assert_close(found[0], meant.attend(stored, whole, dim**-0.5).to(dtype))


@compiled
def test_what_the_cpu_does_not_read_is_refused(ours: CpuKernels, dtype: torch.dtype) -> None:
    qkv = torch.zeros(1, 3, 64, dtype=dtype)
    rotation = (torch.ones(1, 1, 64, dtype=dtype), torch.ones(1, 1, 64, dtype=dtype))
    for cache in (
        drawn_cache(1, 64, FP8),
        KvCache(torch.zeros(2, SLOTS, 64, dtype=torch.float16)),
        KvCache(torch.zeros(2, SLOTS, 64, dtype=torch.int8)),
        KvCache(torch.zeros(2, SLOTS, 64, dtype=dtype), torch.zeros(2, SLOTS)),
    ):
        with pytest.raises(TypeError, match=r"or in torch\.int8 with scales"):
            ours.rotate_and_store(qkv, rotation, torch.tensor([0]), cache)
