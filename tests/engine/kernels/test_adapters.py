"""The products of adapters against those of torch, at every level this processor has."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import AdaptedRows, LowRank
from phi3_serve.engine.kernels.cpu import CpuKernels
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_kernels

TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 1.6e-2}  # of sums of up to 2,000 products of about 1

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to have made kernels with")


@dataclass(eq=False)
class Adapter:
    changes: Sequence[LowRank | None]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def ours(each_level: str, dtype: torch.dtype) -> CpuKernels:
    kernels = select_kernels(torch.device("cpu"), dtype, 64)
    assert isinstance(kernels, CpuKernels), f"the kernels of level {each_level} were not built"
    return kernels


def drawn(rank: int, inputs: int, outputs: int, dtype: torch.dtype) -> Adapter:
    """An adapter of two layers, the first of which it leaves as it is."""
    a, b = (torch.randn(rank, size).to(dtype) for size in (inputs, outputs))
    return Adapter([None, LowRank(a, b, 1.5 / inputs**0.5)])


def added(kernels: CpuKernels | ReferenceKernels, rows: Sequence[AdaptedRows], x: Tensor, output: Tensor) -> Tensor:
    output = output.clone()
    kernels.plan_adapters(rows).add(1, x, output)
    return output


def drawn_rows(draw: random.Random, adapters: Sequence[Adapter], count: int) -> list[AdaptedRows]:
    """``count`` rows of several sequences, with none to three adapters each."""
    rows, end = [], 0
    while end < count:
        first, end = end, min(count, end + draw.choice([1, 1, 2, 7]))
        chosen = draw.sample(list(adapters), draw.randint(0, min(3, len(adapters))))
        if chosen:
            rows.append(AdaptedRows(first, end, tuple((one, draw.choice([1.0, -0.5, 2.0])) for one in chosen)))
    return rows


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (1024, 3072), (40, 33), (17, 5), (2816, 1000)])
@pytest.mark.parametrize("ranks", [(1,), (16, 8, 16), (3, 64, 5, 16)])
def test_products(ours: CpuKernels, dtype: torch.dtype, inputs: int, outputs: int, ranks: tuple[int, ...]) -> None:
    draw = random.Random(inputs)
    adapters = [drawn(rank, inputs, outputs, dtype) for rank in ranks]
    for count in (1, 2, 5, 23):
        rows = drawn_rows(draw, adapters, count)
        x, output = torch.randn(count + 2, inputs).to(dtype), torch.randn(count + 2, outputs).to(dtype)
        if not rows:
            continue
        mine = added(ours, rows, x, output)
        scale = TOLERANCE[dtype] * max(1.0, float(mine.abs().max()) / 4)
        torch.testing.assert_close(mine, added(ReferenceKernels(), rows, x, output), rtol=TOLERANCE[dtype], atol=scale)
        adapted = {row for some in rows for row in range(some.first, some.end)}
        others = sorted(set(range(count + 2)) - adapted)
        assert torch.equal(mine[others], output[others])


@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 512), (72, 136), (17, 5)])
def test_a_row_does_not_depend_on_the_others(ours: CpuKernels, dtype: torch.dtype, inputs: int, outputs: int) -> None:
    draw = random.Random(outputs)
    adapters = [drawn(rank, inputs, outputs, dtype) for rank in (16, 7, 33)]
    x, output = torch.randn(23, inputs).to(dtype), torch.randn(23, outputs).to(dtype)
    rows = drawn_rows(draw, adapters, 23)
    together = added(ours, rows, x, output)
    for some in rows:
        for row in range(some.first, some.end):
            alone = added(ours, [AdaptedRows(0, 1, some.adapters)], x[row : row + 1], output[row : row + 1])
            assert torch.equal(alone[0], together[row]), row


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(ours: CpuKernels, dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    adapters = [drawn(rank, 96, 200, dtype) for rank in (16, 3)]
    x, output = torch.randn(40, 96).to(dtype), torch.randn(40, 200).to(dtype)
    rows = [AdaptedRows(0, 33, ((adapters[0], 1.0),)), AdaptedRows(34, 40, ((adapters[1], 2.0), (adapters[0], 1.0)))]
    expected = added(ours, rows, x, output)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(added(ours, rows, x, output), expected)
    finally:
        torch.set_num_threads(before)


def test_a_layer_that_no_adapter_changes_is_left_alone(ours: CpuKernels, dtype: torch.dtype) -> None:
    adapter = drawn(4, 32, 32, dtype)
    output = torch.full((3, 32), torch.nan, dtype=dtype)
    ours.plan_adapters([AdaptedRows(0, 2, ((adapter, 1.0),))]).add(0, torch.randn(3, 32).to(dtype), output)
    assert output.isnan().all()


def test_sums_of_several_adapters_are_rounded_once(ours: CpuKernels) -> None:
    """Changes that cancel each other leave bfloat16 outputs exactly as they were."""
    if ours._dtype != torch.bfloat16:
        pytest.skip("float32 is rounded in each addition")
    one = drawn(8, 64, 96, torch.bfloat16)
    x, output = torch.randn(1, 64).bfloat16(), torch.randn(1, 96).bfloat16()
    twin = Adapter(one.changes)
    assert torch.equal(added(ours, [AdaptedRows(0, 1, ((one, 1.0), (twin, -1.0)))], x, output), output)


def test_matrices_of_another_dtype_are_refused(ours: CpuKernels, dtype: torch.dtype) -> None:
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(TypeError, match="expected contiguous matrices"):
        ours.plan_adapters([AdaptedRows(0, 1, ((drawn(4, 32, 32, other), 1.0),))])
