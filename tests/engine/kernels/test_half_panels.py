"""Weights in 16 bits under activations in float32, at every level of instructions."""

import pytest
import torch

from phi3_serve.engine.kernels.half_panels import HalfPanels, keeps_dtype, multiplies_halves

pytestmark = pytest.mark.usefixtures("each_level")

HALVES = (torch.bfloat16, torch.float16)
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def every_finite(dtype: torch.dtype) -> torch.Tensor:
    """Each finite number of ``dtype``."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return numbers[numbers.isfinite()]


@pytest.mark.parametrize("dtype", HALVES)
def test_each_number_becomes_its_float(dtype: torch.dtype, each_level: str) -> None:
    """A row of zeros with a one takes a column of the weight out, without a rounding. For AMX, denormal ones are 0."""
    numbers = every_finite(dtype)
    weight = torch.nn.functional.pad(numbers, (0, -len(numbers) % 64)).view(-1, 64)
    taken, meant = HalfPanels(weight)(torch.eye(64)), weight.T.float()
    if each_level == "x86_64_v4_amx" and dtype == torch.bfloat16:
        meant[meant.abs() < SMALLEST_NORMAL] = 0
    assert torch.equal(taken, meant)


def test_each_number_is_multiplied_as_it_is() -> None:
    """A weight of one takes a number out of a row: all 24 bits, of numbers of many sizes."""
    x = torch.randn(90, 64) * 10.0 ** torch.linspace(-30, 37, 90)[:, None]
    x = torch.where(x.abs() < SMALLEST_NORMAL * 2**24, 0, x)  # with AMX, the last part of smaller ones is 0
    x[0, 0], x[0, 1] = torch.finfo(torch.float32).max, torch.finfo(torch.float32).min
    assert torch.equal(HalfPanels(torch.eye(64).bfloat16())(x), x)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_stays_in_its_row(dtype: torch.dtype, number: float) -> None:
    x = torch.randn(40, 64)
    x[7, 3] = number
    is_finite = HalfPanels(torch.randn(48, 64).to(dtype))(x).isfinite()
    assert not is_finite[7].any()
    assert is_finite.sum() == 39 * 48


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 7), (16, 32), (40, 100), (512, 96), (130, 1)])
def test_products_are_those_in_float64_and_the_same_in_any_company(
    outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    x = torch.randn(37, inputs, generator=generator)
    layer = HalfPanels(weight)
    found = layer(x)
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-5)
    for rows in (1, 2, 3, 4, 7, 12, 13, 24):
        assert torch.equal(layer(x[:rows]), found[:rows])
        assert torch.equal(layer(x[-rows:].contiguous()), found[-rows:])
    assert layer(x[:0]).shape == (0, outputs)


@pytest.mark.parametrize("dtype", HALVES)
def test_long_prompts(dtype: torch.dtype) -> None:
    """So many rows and inputs that they are multiplied in several passes."""
    weight, x = torch.randn(80, 1100).to(dtype), torch.randn(530, 1100)
    layer = HalfPanels(weight)
    found = layer(x)
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-4)
    for first, end in ((0, 1), (0, 256), (0, 257), (200, 520), (529, 530)):
        assert torch.equal(layer(x[first:end].contiguous()), found[first:end])


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 8), torch.zeros(2, 7, dtype=torch.bfloat16), torch.zeros(7, 2).T, torch.zeros(7)]
)
def test_other_rows_are_refused(x: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="expected contiguous float32"):
        HalfPanels(torch.zeros(3, 7, dtype=torch.bfloat16))(x)


def test_which_weights_stay_as_they_are(each_level: str) -> None:
    has_vectors = each_level != "any"
    assert multiplies_halves() is has_vectors
    for dtype in HALVES:
        assert keeps_dtype(dtype, torch.float32) is has_vectors
        assert not keeps_dtype(dtype, dtype)
    assert not keeps_dtype(torch.float32, torch.float32)
