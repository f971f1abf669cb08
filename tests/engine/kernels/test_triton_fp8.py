"""Linear layers in float8: the rounding of rows in Triton's interpreter, and torch's product on a CPU."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels import triton_fp8
from phi3_serve.engine.kernels.contract import Fp8Weight
from phi3_serve.engine.kernels.kv_cache import rounded
from phi3_serve.engine.kernels.quantize import quantize_to_fp8
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.triton_fp8 import FP8, ScaledWeight, product_dtype, round_rows

CPU = torch.device("cpu")
ROWS = (0, 1, 5, 40)
LARGEST_ERROR = 2**-4  # of a number: a mantissa has three bits


def all_values() -> Tensor:
    """Every finite value of float8 as float32, in their order."""
    values = torch.arange(256, dtype=torch.uint8).view(FP8).float()
    finite: Tensor = values[values.isfinite()].unique()
    return finite


def nearest(numbers: Tensor) -> Tensor:
    """The nearest value of float8 to each number, by search; of two, the one with an even mantissa."""
    values = all_values()
    distances = (numbers.double()[..., None] - values.double()).abs()
    best = distances.amin(-1, keepdim=True)
    is_even = values.to(FP8).view(torch.uint8) % 2 == 0
    return values[(2 * (distances == best) + ((distances == best) & is_even)).int().argmax(-1)]


def test_a_number_is_rounded_to_the_nearest_value() -> None:
    values = all_values()
    assert (values.numel(), float(values.max())) == (253, 448.0)
    halves = torch.tensor([(a + b) / 2 for a, b in pairwise(values.tolist())])
    row = torch.cat([halves, values, torch.randn(500) * 100])  # its largest number is 448: the scale is 1
    found, scales = round_rows(row[None])
    assert float(scales) == 1.0
    assert torch.equal(found[0, : len(row)].float(), nearest(row))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inputs", [16, 353, 2 * triton_fp8.BLOCK + 7])
def test_rows_are_rounded_as_the_reference_rounds_them(inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(20261201)
    x = (torch.randn(6, inputs) * 10.0 ** torch.arange(-3.0, 3.0)[:, None]).to(dtype)
    x[2] = 0
    x[3, inputs // 2 :] = 0
    found, scales = round_rows(x)
    values, expected = rounded(x, FP8)
    assert torch.equal(scales[:, 0], expected)
    assert torch.equal(found[:, :inputs].view(torch.uint8), values.view(torch.uint8))
    assert found.shape[1] % triton_fp8.MULTIPLE == 0
    assert not found[:, inputs:].view(torch.uint8).any()


def test_a_row_is_rounded_in_any_company_alike() -> None:
    x = torch.randn(7, 300)
    x[4] *= 1e4
    values, scales = round_rows(x)
    for row in range(7):
        alone, scale = round_rows(x[row : row + 1])
        assert torch.equal(alone[0].view(torch.uint8), values[row].view(torch.uint8))
        assert torch.equal(scale[0], scales[row])


def test_a_weight_has_a_scale_for_each_output() -> None:
    torch.manual_seed(20261201)
    weight = (torch.randn(300, 353) * torch.rand(300, 1)).bfloat16()
    weight[7] = 0
    found = quantize_to_fp8(weight)
    assert (found.values.dtype, list(found.scales.shape)) == (FP8, [300, 1])
    assert torch.equal(found.values.float().abs().amax(1), torch.where(torch.arange(300) == 7, 0.0, 448.0))
    # Below a 2^-6, the smallest number with all bits of a mantissa, errors are those of a fixed point.
    bound = LARGEST_ERROR * weight.float().abs() + 2**-10 * found.scales
    assert ((found.dequantized() - weight.float()).abs() <= 1.001 * bound).all()


@pytest.mark.parametrize(
    ("wanted", "capability", "expected"),
    [
        (torch.float16, (8, 9), torch.bfloat16),
        (torch.float16, (9, 0), torch.float16),
        (torch.float16, (10, 0), torch.bfloat16),
        (torch.float16, None, torch.float16),
        (torch.bfloat16, (8, 9), torch.bfloat16),
        (torch.bfloat16, (9, 0), torch.bfloat16),
    ],
    ids=str,
)
def test_cutlass_gives_products_in_bfloat16(
    wanted: torch.dtype, capability: tuple[int, int] | None, expected: torch.dtype
) -> None:
    assert product_dtype(wanted, capability) == expected


def test_products_in_bfloat16_become_the_dtype_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = quantize_to_fp8(torch.randn(48, 64)), torch.randn(5, 64).half()
    whole = ScaledWeight(weight).multiply(x)
    monkeypatch.setattr(triton_fp8, "compute_capability", lambda _: (8, 9))
    found = ScaledWeight(weight).multiply(x)
    assert (found.dtype, found.is_contiguous()) == (torch.float16, True)
    assert torch.equal(found, found.bfloat16().half())
    torch.testing.assert_close(found, whole, rtol=2**-8, atol=0)


def check(weight: Fp8Weight, x: Tensor) -> None:
    """The products with ``x`` against float64 over what the numbers mean after rounding."""
    values, scales = rounded(x, FP8)
    meant = values.double() * scales[:, None].double()
    exact = weight.values.double() * weight.scales.double()
    expected = meant @ exact.T
    of_dtype = torch.finfo(x.dtype)
    bound = 2e-6 * (meant.abs() @ exact.abs().T) + of_dtype.eps * (expected.abs() + of_dtype.tiny)
    for packed in (ScaledWeight(weight), ReferenceKernels().pack_fp8(weight)):
        found = packed.multiply(x)
        assert (found.dtype, found.shape, found.is_contiguous()) == (x.dtype, expected.shape, True)
        assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 256), (37, 353)], ids=str)
def test_products(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(20261201)
    weight = quantize_to_fp8(torch.randn(outputs, inputs) * torch.rand(outputs, 1))
    x = (torch.randn(max(ROWS), inputs) * torch.rand(max(ROWS), 1)).to(dtype)
    for rows in ROWS:
        check(weight, x[:rows].contiguous())


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 256), (37, 353)], ids=str)
def test_what_is_packed_is_what_is_unpacked(outputs: int, inputs: int) -> None:
    weight = quantize_to_fp8(torch.randn(outputs, inputs))
    packed = ScaledWeight(weight)
    unpacked = packed.unpacked()
    assert torch.equal(unpacked.values.view(torch.uint8), weight.values.view(torch.uint8))
    assert torch.equal(unpacked.scales, weight.scales)
    padded_outputs, padded_inputs = (-(-size // 16) * 16 for size in (outputs, inputs))
    assert packed.num_bytes == padded_outputs * (padded_inputs + 4)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_row(number: float) -> None:
    weight = quantize_to_fp8(torch.randn(48, 64))
    for packed in (ScaledWeight(weight), ReferenceKernels().pack_fp8(weight)):
        x = torch.randn(5, 64)
        expected = packed.multiply(x)
        x[3, 5] = number
        found = packed.multiply(x)
        assert found[3].isnan().all()
        others = [0, 1, 2, 4]
        assert torch.equal(found[others], expected[others])


def test_rows_of_another_width_are_refused() -> None:
    packed = ScaledWeight(Fp8Weight(torch.zeros(16, 64).to(FP8), torch.ones(16, 1)))
    for x in (torch.zeros(2, 63), torch.zeros(64, 2).T, torch.zeros(64)):
        with pytest.raises(TypeError, match=r"expected contiguous \[rows, 64\]"):
            packed.multiply(x)
