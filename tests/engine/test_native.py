"""The kernels against what torch computes of the same numbers, at every level this processor has."""

import logging
import random
import shutil
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine import native
from phi3_serve.engine.blocks import BLOCK_SIZE
from phi3_serve.engine.native import NativeOperations, kernels, operations_for
from phi3_serve.engine.operations import Operations, Row

CPU = torch.device("cpu")
HAS = {"any": "DEFAULT", "x86_64_v3": "AVX2", "x86_64_v4": "AVX512"}  # level: as torch names it
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}  # bfloat16: two units in the last place
NUM_BLOCKS = 40

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to have made kernels with")


def levels() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    ranks = list(HAS.values())
    return list(HAS)[: ranks.index(capability) + 1] if capability in ranks else ["any"]


@pytest.fixture(params=levels())
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every kernel of this test is that of one level."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: HAS[request.param])
    kernels.cache_clear()
    yield str(request.param)
    kernels.cache_clear()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def ours(level: str, dtype: torch.dtype) -> Operations:
    operations = operations_for(CPU, dtype, 64)
    assert isinstance(operations, NativeOperations), f"the kernels of level {level} were not built"
    return operations


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[ours.dtype], atol=TOLERANCE[ours.dtype])


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 1000), (16, 1024), (40, 33)])
def test_add_rms_norm(ours: Operations, dtype: torch.dtype, rows: int, width: int) -> None:
    hidden, delta = (torch.randn(rows, width).to(dtype) for _ in range(2))
    weight = torch.randn(width).to(dtype)
    expected = hidden.clone()
    normed = Operations().add_rms_norm(expected, delta, weight, 1e-5)
    assert_close(ours.add_rms_norm(hidden, delta, weight, 1e-5), normed)
    assert torch.equal(hidden, expected)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 1001), (40, 33)])
def test_silu_product(ours: Operations, dtype: torch.dtype, rows: int, width: int) -> None:
    gate_up = (torch.randn(rows, 2 * width) * 20).to(dtype)
    gate_up[0, :6] = torch.tensor([-1000.0, 1000.0, -89.0, 89.0, 0.0, -0.0])
    assert_close(ours.silu_product(gate_up), Operations().silu_product(gate_up))


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary"), [(4, 4, 64, 64), (4, 2, 96, 72), (8, 1, 40, 40)])
def test_rotate_and_store(
    ours: Operations, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary: int
) -> None:
    """The last two tokens are nobody's, and have no place in the cache."""
    qkv = torch.randn(9, heads + 2 * kv_heads, dim).to(dtype)
    rotation = (torch.randn(9, 1, rotary).to(dtype), torch.randn(9, 1, rotary).to(dtype))
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:7]
    cache = torch.randn(2 * kv_heads, NUM_BLOCKS * BLOCK_SIZE, dim).to(dtype)
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    ours.rotate_and_store(qkv, rotation, slots, cache)
    Operations().rotate_and_store(expected_qkv, rotation, slots, expected_cache)
    assert_close(qkv[:7], expected_qkv[:7])
    assert_close(cache, expected_cache)


def drawn_rows(draw: random.Random, count: int) -> list[Row]:
    """Queries of sequences with blocks anywhere, some of which share their first ones; windows begin anywhere."""
    shared = draw.sample(range(NUM_BLOCKS), 6)
    rows = []
    for query in draw.sample(range(count + 3), count):
        table = array("i", shared[: draw.randrange(7)] + draw.sample(range(NUM_BLOCKS), draw.randint(1, 20)))
        end = draw.randint(1, len(table) * BLOCK_SIZE)
        rows.append(Row(query, table, draw.choice([0, draw.randrange(end)]), end))
    return rows


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 64), (4, 2, 96), (8, 2, 128), (3, 1, 40), (2, 2, 256), (2, 1, 17)]
)
@pytest.mark.parametrize("count", [1, 7, 33])
def test_attention(ours: Operations, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, count: int) -> None:
    rows = drawn_rows(random.Random(count * dim), count)
    cache = torch.randn(2 * kv_heads, NUM_BLOCKS * BLOCK_SIZE, dim).to(dtype)
    query = torch.randn(count + 3, heads + 2 * kv_heads, dim).to(dtype)[:, :heads]
    outputs = []
    for operations in (ours, Operations()):
        outputs.append(torch.full((count + 3, heads, dim), 7.0, dtype=dtype))
        operations.reader(rows, cache).attend(query, cache, outputs[-1], dim**-0.5)
    assert_close(*outputs)
    strangers = sorted(set(range(count + 3)) - {row.query for row in rows})
    assert (outputs[0][strangers] == 7).all()


def test_large_scores_and_no_numbers_stay_where_they_are(ours: Operations, dtype: torch.dtype) -> None:
    tables = [array("i", [number]) for number in range(3)]
    cache = torch.randn(2, NUM_BLOCKS * BLOCK_SIZE, 64).to(dtype)
    query = torch.randn(3, 1, 64).to(dtype)
    query[1] = 1e4  # one key outweighs all others
    query[2] = torch.nan
    output = torch.zeros(3, 1, 64, dtype=dtype)
    rows = [Row(at, table, 0, 16) for at, table in enumerate(tables)]
    ours.reader(rows, cache).attend(query, cache, output, 1.0)
    likeliest = int((query[1, 0].float() * cache[0, 16:32].float()).sum(-1).argmax())
    assert_close(output[1, 0], cache[1, 16 + likeliest])
    assert output[2].isnan().all()
    assert output[0].isfinite().all()


def test_what_the_kernels_cannot_read_is_refused(ours: Operations, dtype: torch.dtype) -> None:
    other = torch.float16
    with pytest.raises(TypeError, match="the kernels want contiguous"):
        ours.silu_product(torch.zeros(2, 8, dtype=other))
    with pytest.raises(TypeError, match="the kernels want contiguous"):
        ours.silu_product(torch.zeros(8, 2, dtype=dtype).T)


def test_torch_computes_what_the_kernels_do_not() -> None:
    for device, dtype, head_dim in (
        (torch.device("cuda"), torch.bfloat16, 64),
        (CPU, torch.float16, 64),
        (CPU, torch.float32, native.MOST_DIMENSIONS + 1),
    ):
        assert type(operations_for(device, dtype, head_dim)) is Operations


def test_a_missing_library_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(native, "EXTENSION_SUFFIXES", [".nowhere.so"])
    kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="phi3_serve"):
            assert type(operations_for(CPU, torch.float32, 64)) is Operations
            operations_for(CPU, torch.float32, 64)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "a C++ compiler (g++)" in caplog.text
    finally:
        kernels.cache_clear()


def test_the_kernels_share_the_threads_of_torch() -> None:
    """Two OpenMP runtimes in one process would keep each other's threads from the cores."""
    assert kernels() is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "gomp" in line or "libomp" in line or "iomp" in line}
    assert len(runtimes) == 1
