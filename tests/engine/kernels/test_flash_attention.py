"""torch's FlashAttention-2 over gathered keys. Its operation is emulated on the CPU; on meta tensors it is torch's own."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels import flash_attention, prompt_attention
from phi3_serve.engine.kernels.contract import GatheredQueries
from phi3_serve.engine.kernels.cuda import ChunkSize, CudaKernels
from phi3_serve.engine.kernels.flash_attention import attend, problem_of_flash_attention
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.prompt_attention import ALL_GATHERED, Trial, sizes_to_gather
from phi3_serve.engine.kernels.self_check import ModelShape, problem_of_attention
from tests.engine.kernels.emulated_flash import emulated_flash_attention
from tests.engine.kernels.test_triton_attention import TOLERANCE, UNWRITTEN, Request, Shape, Step
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY

CPU = torch.device("cpu")
SHAPE = ModelShape(
    num_heads=4, num_kv_heads=2, head_dim=48, rotary_dim=40, hidden_size=120, intermediate_size=1200, window=50
)
REQUESTS = [Request(21, 21), Request(30, 75), Request(9, 90, shares=True), Request(16, 96, shares=True)]


@pytest.fixture
def calls() -> Iterator[list[tuple[int, int, int]]]:
    with emulated_flash_attention() as calls:
        yield calls


@pytest.fixture(autouse=True)
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4, major=9)
    )


def attended(step: Step, shape: Shape, scale: float) -> Tensor:
    output = torch.full(step.query.shape, UNWRITTEN, dtype=shape.dtype)
    tables = torch.tensor(step.block_tables, dtype=torch.int32)
    for sequence in step.sequences:
        chunk = GatheredQueries(*sequence)
        attend(step.query, step.cache, output, tables, chunk, scale=scale, window=shape.window)
    return output


@pytest.mark.parametrize("window", [None, 1, 7, 20, 64, 1000])
@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(heads=6, kv_heads=2), Shape(heads=8, kv_heads=8, dim=96), Shape(dtype=torch.bfloat16)],
    ids=str,
)
@pytest.mark.parametrize("heads_at_once", [1, 2, 99])
def test_chunks_with_and_without_a_prefix(
    window: int | None, shape: Shape, heads_at_once: int, calls: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither keys that nobody has written nor those of other sequences change the result."""
    shape = replace(shape, window=window)
    step = Step.of(REQUESTS, shape)
    of_head = 2 * 96 * shape.dim * shape.dtype.itemsize  # of the longest sequence
    monkeypatch.setattr(flash_attention, "MAX_GATHERED_BYTES", heads_at_once * of_head)
    found, expected = attended(step, shape, 0.3), step.expected(shape, 0.3)
    tolerance = TOLERANCE[shape.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    if heads_at_once == 99:
        assert len(calls) == len(REQUESTS)


def test_only_visible_blocks_are_gathered(calls: list[tuple[int, int, int]]) -> None:
    shape = Shape(window=20)
    attended(Step.of([Request(9, 90)], shape), shape, 0.3)
    assert calls == [(9, 90 - 48, 2)]  # the first query, at 81, sees from 62 on, which is in the block of 48


def test_heads_are_gathered_in_parts(calls: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    shape = Shape(heads=20, kv_heads=5)
    of_head = 2 * 90 * shape.dim * shape.dtype.itemsize
    monkeypatch.setattr(flash_attention, "MAX_GATHERED_BYTES", 2 * of_head)
    attended(Step.of([Request(9, 90)], shape), shape, 0.3)
    assert calls == [(9, 90, 8), (9, 90, 8), (9, 90, 4)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 32, 96), (40, 10, 128)], ids=["mini", "medium"])
@pytest.mark.parametrize("window", [None, 2047])
def test_torchs_operation_takes_the_arguments(heads: int, kv_heads: int, dim: int, window: int | None) -> None:
    """Shapes, dtypes and strides, and no number is read from the device."""
    with torch.device("meta"):
        qkv = torch.empty(2048, heads + 2 * kv_heads, dim, dtype=torch.bfloat16)
        cache = KvCache(torch.empty(2 * kv_heads, 1 << 17, dim, dtype=torch.bfloat16))
        output = torch.empty(2048, heads, dim, dtype=torch.bfloat16)
        tables = torch.empty(9000, dtype=torch.int32)
    chunk = GatheredQueries(10, 2000, 131_000, 17)
    attend(qkv[:, :heads], cache, output, tables, chunk, scale=0.1, window=window)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, None),
        ({"head_dim": 128, "dtype": torch.float16}, None),
        ({"is_before_ampere": True}, "the GPU is older than Ampere"),
        ({"dtype": torch.float32}, "the model computes in float32"),
        ({"cache_has_8_bits": True}, "the key-value cache has 8 bits"),
        ({"head_dim": 100}, "a head has 100 dimensions"),
    ],
)
def test_what_it_cannot_compute(given: dict[str, object], problem: str | None) -> None:
    usual = {"head_dim": 96, "dtype": torch.bfloat16, "is_before_ampere": False, "cache_has_8_bits": False}
    assert problem_of_flash_attention(**{**usual, **given}) == problem  # type: ignore[arg-type]


def make(gathered: Mapping[ChunkSize, bool], dtype: torch.dtype = torch.bfloat16) -> CudaKernels:
    return CudaKernels(num_heads=4, num_kv_heads=2, dtype=dtype, device=CPU, gathered=gathered)


def test_a_chunk_counts_as_the_largest_size_that_it_has() -> None:
    kernels = make(
        {
            ChunkSize(100, 1000): False,
            ChunkSize(100, 4000): True,
            ChunkSize(500, 1000): True,
            ChunkSize(500, 4000): False,
        }
    )
    found = {
        (queries, keys): kernels.gathers(queries, keys) for queries in (99, 100, 600) for keys in (999, 1000, 5000)
    }
    assert [size for size, is_gathered in found.items() if is_gathered] == [(100, 5000), (600, 1000)]
    assert (kernels.name, kernels.flash_attention) == ("cuda", "from 100 tokens over 4000 keys")
    assert make({ChunkSize(100, 1000): False}).flash_attention == ""


@pytest.mark.thorough  # in Triton's interpreter
@pytest.mark.parametrize("window", [None, 50])
def test_right_attention_is_right(window: int | None, calls: list[object]) -> None:
    """With short tiles in Triton's interpreter beside it."""
    shape = replace(SHAPE, window=window)
    assert problem_of_attention(make(ALL_GATHERED), shape, device=CPU, dtype=torch.bfloat16) is None
    assert len(calls) > 4


def trial(dtype: torch.dtype = torch.bfloat16, context: int = 4096) -> Trial:
    return sizes_to_gather(
        lambda gathered: make(gathered, dtype), SHAPE, device=CPU, dtype=dtype, context=context, cache_has_8_bits=False
    )


def chosen() -> Mapping[ChunkSize, bool]:
    found, problem = trial()
    assert problem is None
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.thorough  # in Triton's interpreter
def test_both_are_timed(
    calls: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the interpreter, Triton takes a hundred times as long."""
    sizes = (ChunkSize(16, 32), ChunkSize(16, 5000))
    monkeypatch.setattr(prompt_attention, "TRIAL_SIZES", sizes)
    monkeypatch.setattr(prompt_attention, "TRIAL_ROUNDS", 1)
    monkeypatch.setattr(prompt_attention, "CALLS", 2)
    monkeypatch.setattr(prompt_attention, "problem_of_attention", lambda *_, **__: None)
    with caplog.at_level(logging.INFO, "phi3_serve"):
        assert chosen() == {sizes[0]: True}  # the other is longer than the context
    assert calls == [(16, 32, 4)] * 3
    (record,) = caplog.records
    assert "milliseconds of Triton and of torch: 16 over 32 keys: " in record.getMessage()


@pytest.mark.parametrize(("theirs", "is_faster"), [(0.9, True), (0.96, False), (1.1, False)])
def test_the_faster_one_is_chosen(
    theirs: float, is_faster: bool, calls: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_attention, "problem_of_attention", lambda *_, **__: None)
    monkeypatch.setattr(prompt_attention, "seconds_of_both", lambda *_: (1.0, theirs))
    assert set(chosen().values()) == {is_faster}
    assert {size.num_keys for size in chosen()} == {2048}


@pytest.mark.thorough  # in Triton's interpreter
def test_one_that_is_wrong_is_not_used(
    calls: list[object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = flash_attention._of_heads
    monkeypatch.setattr(flash_attention, "_of_heads", lambda *given: right(*given) * 1.2)
    found, problem = trial()
    assert found == {}
    assert problem is not None
    assert problem.startswith("it differs from the reference by ")
    assert [problem in warning for warning in warnings(caplog)] == [True]


@pytest.mark.thorough  # in Triton's interpreter
def test_one_that_ignores_a_window_is_not_used(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a model without a window, because the check at load knows no larger one."""
    right = flash_attention._of_heads
    monkeypatch.setattr(flash_attention, "_of_heads", lambda *given: right(*(*given[:-1], None)))
    problem = problem_of_attention(make(ALL_GATHERED), replace(SHAPE, window=None), device=CPU, dtype=torch.bfloat16)
    assert problem is not None
    assert problem.startswith("it differs from the reference by ")


@pytest.mark.thorough  # in Triton's interpreter
def test_one_that_is_wrong_for_large_chunks_is_not_used(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    right = flash_attention._of_heads
    monkeypatch.setattr(prompt_attention, "TRIAL_SIZES", (ChunkSize(16, 32),))
    monkeypatch.setattr(prompt_attention, "problem_of_attention", lambda *_, **__: None)
    monkeypatch.setattr(flash_attention, "_of_heads", lambda *given: right(*given) * 1.02)
    found, problem = trial()
    assert found == {}
    assert problem is not None
    assert problem.startswith("ValueError: for 16 tokens over 32 keys it differs from Triton's by 0.02")


def test_one_that_torch_does_not_have_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """As on this CPU."""
    found, problem = trial()
    assert found == {}
    assert problem is not None
    assert problem.startswith("NotImplementedError: Could not run 'aten::_flash_attention_forward'")
    assert [problem in warning for warning in warnings(caplog)] == [True]


@pytest.mark.parametrize(
    ("given", "limit"),
    [({"dtype": torch.float32}, "the model computes in float32"), ({"context": 2047}, "the context has 2047 tokens")],
)
def test_a_case_that_it_does_not_have_is_no_fault(
    given: dict[str, Any], limit: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "phi3_serve"):
        assert trial(**given) == Trial({})
    assert [record.getMessage() for record in caplog.records] == [f"Triton computes the attention of prompts: {limit}"]
    assert warnings(caplog) == []


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_one_without_memory_is_not_used(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(flash_attention, "_of_heads", no_memory)
    assert trial() == Trial({}, f"{type(error).__name__}: {error}".split("\n", 1)[0])


def test_an_error_while_it_is_timed_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object) -> tuple[float, float]:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED\nMore.")

    monkeypatch.setattr(prompt_attention, "problem_of_attention", lambda *_, **__: None)
    monkeypatch.setattr(prompt_attention, "seconds_of_both", fails)
    problem = "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"
    assert trial() == Trial({}, problem)
    assert [problem in warning for warning in warnings(caplog)] == [True]


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_device_is_asked_after_an_error(is_broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the error says, it ends the load only if the device raises it again."""

    def no_kernel(*_: object) -> Tensor:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    def ask(_: object) -> None:
        if is_broken:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(prompt_attention, "problem_of_attention", lambda *_, **__: None)
    monkeypatch.setattr(prompt_attention, "seconds_of_both", no_kernel)
    monkeypatch.setattr(prompt_attention, "_wait_for", ask)
    if not is_broken:
        assert trial().gathered == {}
        return
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        trial()
