"""Linear layers of a GPU, with the kernel for one row in Triton's interpreter."""

import logging

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from phi3_serve.engine.kernels import triton_linear
from phi3_serve.engine.kernels.triton_linear import LinearConfig, multiply_row
from phi3_serve.engine.model.linear import Streamed
from tests.engine.kernels.interpreter import mended_interpreter
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY

OUTPUTS, INPUTS = 40, 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_row_takes_the_kernel(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[int] = []

    def watched(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
        rows.append(len(x))
        return multiply_row(x, weight, config)

    monkeypatch.setattr(triton_linear, "multiply_row", watched)
    form = Streamed()
    with mended_interpreter():
        weights = [(0.02 * torch.randn(OUTPUTS, INPUTS)).to(dtype) for _ in range(2)]
        layers = [form(weight) for weight in weights]
        assert rows == [1]  # a size is checked once
        for layer, weight in zip(layers, weights, strict=True):
            for count in (1, 3):
                x = torch.randn(count, INPUTS).to(dtype)
                torch.testing.assert_close(layer(x), linear(x, weight), rtol=1e-2, atol=1e-2)
    assert rows == [1, 1, 1]
    assert not caplog.records


def too_large(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
    return 1.05 * linear(x, weight)


def no_number(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
    return linear(x, weight) * torch.nan


def does_not_compile(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
    raise RuntimeError("PassManager::run failed")


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (too_large, "the relative error is 0.05"),
        (no_number, "the relative error is nan"),
        (does_not_compile, "PassManager::run failed"),
    ],
)
def test_a_wrong_kernel_is_replaced(
    kernel: object, problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton_linear, "multiply_row", kernel)
    form, weight, x = Streamed(), torch.randn(OUTPUTS, INPUTS), torch.randn(1, INPUTS)
    with caplog.at_level(logging.WARNING):
        layers = [form(weight) for _ in range(2)]
    assert all(torch.equal(layer(x), linear(x, weight)) for layer in layers)
    (record,) = caplog.records
    assert "replaced by torch for [40, 1024]" in record.getMessage()
    assert problem in record.getMessage()


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("an illegal memory access was encountered"), *LACKS_OF_MEMORY], ids=str
)
def test_a_broken_device_and_a_full_memory_are_no_wrong_kernel(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: Tensor, weight: Tensor, config: LinearConfig) -> Tensor:
        raise error

    monkeypatch.setattr(triton_linear, "multiply_row", broken)
    with pytest.raises(type(error)) as caught:
        Streamed()(torch.randn(OUTPUTS, INPUTS))
    assert caught.value is error
