"""The kernels against what torch computes of the same numbers, at every level this processor has."""

import logging
import random
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels import cpu_library as library_module
from phi3_serve.engine.kernels.contract import KERNELS, AttentionRow
from phi3_serve.engine.kernels.cpu import CpuKernels
from phi3_serve.engine.kernels.cpu_library import MAX_HEAD_DIM, MULTIPLY, cpu_library, levels
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.model.linear import paneled

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}  # bfloat16: two units in the last place
NUM_BLOCKS = 40

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to have made kernels with")


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def ours(each_level: str, dtype: torch.dtype) -> CpuKernels:
    kernels = select_kernels(CPU, dtype, 64)
    assert isinstance(kernels, CpuKernels), f"the kernels of level {each_level} were not built"
    return kernels


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[ours.dtype], atol=TOLERANCE[ours.dtype])


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 1000), (16, 1024), (40, 33)])
def test_add_rms_norm(ours: CpuKernels, dtype: torch.dtype, rows: int, width: int) -> None:
    hidden, delta = (torch.randn(rows, width).to(dtype) for _ in range(2))
    weight = torch.randn(width).to(dtype)
    expected = hidden.clone()
    normed = ReferenceKernels().add_rms_norm(expected, delta, weight, 1e-5)
    assert_close(ours.add_rms_norm(hidden, delta, weight, 1e-5), normed)
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 1001), (40, 33)])
def test_silu_product(ours: CpuKernels, dtype: torch.dtype, rows: int, width: int) -> None:
    gate_up = (torch.randn(rows, 2 * width) * 20).to(dtype)
    gate_up[0, :6] = torch.tensor([-1000.0, 1000.0, -89.0, 89.0, 0.0, -0.0])
    assert_close(ours.silu_product(gate_up), ReferenceKernels().silu_product(gate_up))


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary"), [(4, 4, 64, 64), (4, 2, 96, 72), (8, 1, 40, 40)])
def test_rotate_and_store(
    ours: CpuKernels, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary: int
) -> None:
    """The last two tokens are nobody's, and have no place in the cache."""
    qkv = torch.randn(9, heads + 2 * kv_heads, dim).to(dtype)
    rotation = (torch.randn(9, 1, rotary).to(dtype), torch.randn(9, 1, rotary).to(dtype))
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:7]
    cache = torch.randn(2 * kv_heads, NUM_BLOCKS * BLOCK_SIZE, dim).to(dtype)
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    ours.rotate_and_store(qkv, rotation, slots, KvCache(cache))
    ReferenceKernels().rotate_and_store(expected_qkv, rotation, slots, KvCache(expected_cache))
    assert_close(qkv[:7], expected_qkv[:7])
    assert_close(cache, expected_cache)


def drawn_rows(draw: random.Random, count: int) -> list[AttentionRow]:
    """Queries of sequences with blocks anywhere, some of which share their first ones; windows begin anywhere."""
    shared = draw.sample(range(NUM_BLOCKS), 6)
    rows = []
    for query in draw.sample(range(count + 3), count):
        table = array("i", shared[: draw.randrange(7)] + draw.sample(range(NUM_BLOCKS), draw.randint(1, 20)))
        end = draw.randint(1, len(table) * BLOCK_SIZE)
        rows.append(AttentionRow(query, table, draw.choice([0, draw.randrange(end)]), end))
    return rows


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 96), (8, 2, 128), (3, 1, 40), (2, 2, 256), (2, 1, 17)]
)
@pytest.mark.parametrize("count", [1, 7, 33])
def test_attention(ours: CpuKernels, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, count: int) -> None:
    rows = drawn_rows(random.Random(count * dim), count)
    cache = KvCache(torch.randn(2 * kv_heads, NUM_BLOCKS * BLOCK_SIZE, dim).to(dtype))
    query = torch.randn(count + 3, heads + 2 * kv_heads, dim).to(dtype)[:, :heads]
    outputs = []
    for kernels in (ours, ReferenceKernels()):
        outputs.append(torch.full((count + 3, heads, dim), 7.0, dtype=dtype))
        kernels.of_rows(rows, cache).attend(query, cache, outputs[-1], dim**-0.5)
    assert_close(*outputs)
    strangers = sorted(set(range(count + 3)) - {row.query for row in rows})
    assert (outputs[0][strangers] == 7).all()


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 96), (4, 1, 128), (3, 1, 20), (2, 1, 255), (66, 1, 12)])
@pytest.mark.parametrize("window", [None, 9, 100])
def test_attention_of_prompts(
    ours: CpuKernels, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, window: int | None
) -> None:
    """In float32 the borders of chunks change no bit. What nobody has written yet may be no number."""
    total, start = 203, 0
    qkv = torch.randn(total, heads + 2 * kv_heads, dim).to(dtype)
    sequence = CachedSequence([0] * total)
    sequence.block_table = array("i", random.Random(dim).sample(range(NUM_BLOCKS), -(-total // BLOCK_SIZE)))
    slots = torch.tensor([sequence.slot(position) for position in range(total)])
    cache = KvCache(torch.full((2 * kv_heads, NUM_BLOCKS * BLOCK_SIZE, dim), torch.nan).to(dtype))
    found = []
    for sizes in ([total], [1] * 70 + [133], [64, 139], [17, 3, 180, 1, 2]):
        start, outputs = 0, []
        for size in sizes:
            sequence.num_cached, end = start, start + size
            cache.store(slots[start:end], qkv[start:end, heads:])
            plan = ours.plan_attention([Chunk(sequence, size, 1)], window=window, cache=cache)
            outputs.append(plan.attend(qkv[start:end].contiguous(), cache, dim**-0.5))
            start = end
        found.append(torch.cat(outputs))
        cache.values.fill_(torch.nan)
    cache.store(slots, qkv[:, heads:])
    sequence.num_cached = 0
    meant = ReferenceKernels().plan_attention([Chunk(sequence, total, 1)], window=window, cache=cache)
    for one in found:
        assert_close(one, meant.attend(qkv, cache, dim**-0.5))
        assert dtype != torch.float32 or torch.equal(one, found[0])


def test_a_step_without_queries_has_no_attention(ours: CpuKernels, dtype: torch.dtype) -> None:
    cache = KvCache(torch.zeros(2, BLOCK_SIZE, 64, dtype=dtype))
    plan = ours.plan_attention([], window=None, cache=cache)
    assert plan.attend(torch.zeros(0, 3, 64, dtype=dtype), cache, 1.0).shape == (0, 64)


def test_large_scores_and_no_numbers_stay_where_they_are(ours: CpuKernels, dtype: torch.dtype) -> None:
    tables = [array("i", [number]) for number in range(3)]
    cache = torch.randn(2, NUM_BLOCKS * BLOCK_SIZE, 64).to(dtype)
    query = torch.randn(3, 1, 64).to(dtype)
    query[1] = 1e4  # one key outweighs all others
    query[2] = torch.nan
    output = torch.zeros(3, 1, 64, dtype=dtype)
    rows = [AttentionRow(at, table, 0, 16) for at, table in enumerate(tables)]
    ours.of_rows(rows, KvCache(cache)).attend(query, KvCache(cache), output, 1.0)
    likeliest = int((query[1, 0].float() * cache[0, 16:32].float()).sum(-1).argmax())
    assert_close(output[1, 0], cache[1, 16 + likeliest])
    assert output[2].isnan().all()
    assert output[0].isfinite().all()


def multiplies_bfloat16() -> bool:
    return "x86_64_v4_bf16" in levels() and hasattr(cpu_library(), MULTIPLY)


@pytest.mark.parametrize("rows", [1, 2, 8, 15, 16, 17, 23, 24, 31, 32, 50, 129])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 2), (32, 64), (48, 30), (64, 1024), (352, 96), (17, 64)])
def test_paneled_layers(rows: int, outputs: int, inputs: int) -> None:
    """Panels in groups of three and what is left, rows in all remainders; 17 outputs are no panels."""
    weight, x = torch.randn(outputs, inputs).bfloat16(), torch.randn(rows, inputs).bfloat16()
    if not multiplies_bfloat16():
        with pytest.raises(RuntimeError, match="no panel kernel"):
            paneled(weight)
        return
    expected = x.double() @ weight.double().T
    found = paneled(weight)(x)
    assert found.shape == expected.shape
    # one rounding of the sum to bfloat16, and those of summing in float32
    assert ((found.double() - expected).abs() <= 2**-8 * expected.abs() + 1e-5 * inputs**0.5).all()


def test_a_row_does_not_depend_on_the_others() -> None:
    if not multiplies_bfloat16():
        pytest.skip("no panel kernel on this processor")
    layer = paneled(torch.randn(112, 640).bfloat16())
    x = torch.randn(40, 640).bfloat16()
    alone = torch.cat([layer(x[at : at + 1].contiguous()) for at in range(40)])
    for rows in (3, 16, 20, 40):
        assert torch.equal(layer(x[:rows].contiguous()), alone[:rows])


def test_paneled_layers_are_for_bfloat16_alone() -> None:
    with pytest.raises(RuntimeError, match=r"no panel kernel for torch\.float32"):
        paneled(torch.randn(16, 16))


def test_what_the_kernels_cannot_read_is_refused(ours: CpuKernels, dtype: torch.dtype) -> None:
    other = torch.float16
    with pytest.raises(TypeError, match="expected contiguous"):
        ours.silu_product(torch.zeros(2, 8, dtype=other))
    with pytest.raises(TypeError, match="expected contiguous"):
        ours.silu_product(torch.zeros(8, 2, dtype=dtype).T)


def test_torch_computes_what_the_kernels_do_not() -> None:
    for device, dtype, head_dim in (
        (torch.device("cuda"), torch.bfloat16, 64),
        (CPU, torch.float16, 64),
        (CPU, torch.float32, MAX_HEAD_DIM + 1),
    ):
        kernels = select_kernels(device, dtype, head_dim)
        assert type(kernels) is ReferenceKernels
        assert tuple(kernels.replaced) == KERNELS
        assert len(set(kernels.replaced.values())) == 1


def test_a_missing_library_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(library_module, "EXTENSION_SUFFIXES", [".nowhere.so"])
    cpu_library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="phi3_serve"):
            kernels = select_kernels(CPU, torch.float32, 64)
            assert type(kernels) is ReferenceKernels
            assert "install g++" in kernels.replaced["attend"]
            select_kernels(CPU, torch.float32, 64)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "a C++ compiler (g++)" in caplog.text
    finally:
        cpu_library.cache_clear()


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(library_module, "_ARGUMENTS", {**library_module._ARGUMENTS, "of_the_future": []})
    cpu_library.cache_clear()
    try:
        assert cpu_library() is None
        assert "without of_the_future_float32: falling back" in caplog.text
    finally:
        cpu_library.cache_clear()


def test_the_best_level_that_was_compiled_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler may be too old for one of them."""
    cpu_library.cache_clear()
    monkeypatch.setattr(library_module, "levels", lambda: ("of_the_future", *levels()))
    library = cpu_library()
    assert library is not None
    assert f"_cpu_{levels()[0]}." in library._name
    cpu_library.cache_clear()


def test_the_kernels_are_named_by_their_level() -> None:
    name = select_kernels(CPU, torch.float32, 64).name
    assert name == f"cpu ({levels()[0].replace('_', '-')})"
    assert name in {"cpu (x86-64-v4-amx)", "cpu (x86-64-v4-bf16)", "cpu (x86-64-v4)", "cpu (x86-64-v3)", "cpu (any)"}


def test_the_kernels_share_the_threads_of_torch() -> None:
    """Two OpenMP runtimes in one process would keep each other's threads from the cores."""
    assert cpu_library() is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "gomp" in line or "libomp" in line or "iomp" in line}
    assert len(runtimes) == 1
