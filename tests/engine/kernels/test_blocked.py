"""Weights whose inputs are in blocks of groups: packed, and multiplied by at every level this processor has."""

import shutil
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import BLOCKED_FORMS, Bits, BlockedWeight, Kernels
from phi3_serve.engine.kernels.quantized_panels import QuantizedPanels
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kernels.self_check import problem_of_pack

CPU = torch.device("cpu")
SIZES = [(16, 1), (64, 2), (48, 1), (17, 3), (208, 2), (33, 4)]  # outputs, and blocks of inputs
ROWS = [*range(1, 15), 16, 18, 23, 24, 25, 40, 300]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to have made kernels with")


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    torch.manual_seed(20261130)


@dataclass(frozen=True)
class Form:
    bits: Bits
    group: int
    has_minima: bool
    groups: int  # of a block

    def drawn(self, outputs: int, blocks: int) -> BlockedWeight:
        """Every value that the form has, steps of both signs, and scales down to the least of float16."""
        inputs = blocks * self.groups * self.group
        values = integers(0, 15, outputs, inputs) if self.bits == 4 else integers(-128, 127, outputs, inputs)
        scales = [torch.randn(outputs, blocks).mul(0.01).half() for _ in range(2)]
        scales[0][0] = 6e-8  # not normalised
        steps = [integers(-128, 127, outputs, blocks * self.groups) for _ in range(2)]
        return BlockedWeight(
            self.bits, values, scales[0], steps[0], *((scales[1], steps[1]) if self.has_minima else ())
        )


FORMS = [
    Form(bits, group, has_minima, groups)
    for bits, forms in BLOCKED_FORMS.items()
    for group, has_minima in forms
    for groups in ((2, 16) if group == 16 else (1, 4, 8))
]


def integers(least: int, most: int, *size: int) -> Tensor:
    return torch.randint(least, most + 1, size, dtype=torch.int8)


@pytest.fixture(params=FORMS, ids=str)
def form(request: pytest.FixtureRequest) -> Form:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def ours(each_level: str) -> Kernels:
    kernels = select_kernels(CPU, torch.float32, 64)
    assert kernels.name == f"cpu ({each_level.replace('_', '-')})"
    return kernels


def parts(weight: BlockedWeight) -> list[Tensor | None]:
    return [weight.values, weight.scales, weight.steps, weight.minima, weight.minimum_steps]


def test_a_weight_is_what_its_parts_say() -> None:
    weight = Form(4, 32, True, 2).drawn(5, 3)
    assert weight.minima is not None
    assert weight.minimum_steps is not None
    dequantized = weight.dequantized()
    for o, i in ((0, 0), (1, 31), (2, 32), (3, 64), (4, 191)):
        scale = float(weight.scales[o, i // 64]) * int(weight.steps[o, i // 32])
        least = float(weight.minima[o, i // 64]) * int(weight.minimum_steps[o, i // 32])
        assert float(dequantized[o, i]) == pytest.approx(int(weight.values[o, i]) * scale - least, rel=1e-6)
    some = torch.tensor([[3, 0], [4, 3]])
    assert torch.equal(weight.rows(some).dequantized(), dequantized[some])


@pytest.mark.parametrize(("outputs", "blocks"), SIZES)
def test_what_is_packed_is_what_is_unpacked(form: Form, outputs: int, blocks: int) -> None:
    if (blocks * form.groups * form.group) % 32:
        pytest.skip("inputs are a multiple of 32")
    weight = form.drawn(outputs, blocks)
    ours, reference = (k.pack(weight) for k in (select_kernels(CPU, torch.float32, 64), ReferenceKernels()))
    assert isinstance(ours, QuantizedPanels)
    for pack in (ours, reference):
        unpacked = pack.unpacked()
        assert isinstance(unpacked, BlockedWeight)
        assert unpacked.bits == weight.bits
        for found, expected in zip(parts(unpacked), parts(weight), strict=True):
            assert (found is None) == (expected is None)
            assert found is None or expected is None or torch.equal(found, expected)


def test_a_weight_takes_its_bits_and_its_share_of_scales(form: Form) -> None:
    weight = form.drawn(320, 4)
    inputs = 4 * form.groups * form.group
    of_scales = (1 + form.has_minima) * 320 * (4 * 2 + 4 * form.groups)
    for kernels in (select_kernels(CPU, torch.float32, 64), ReferenceKernels()):
        assert kernels.pack(weight).num_bytes == 320 * inputs * form.bits // 8 + of_scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("outputs", "blocks"), SIZES)
def test_products(ours: Kernels, form: Form, dtype: torch.dtype, outputs: int, blocks: int) -> None:
    weight = form.drawn(outputs, blocks)
    exact = weight.dequantized().double()
    x = torch.randn(max(ROWS), exact.shape[1]).to(dtype)
    expected = x.double() @ exact.T
    # of the sum of magnitudes, to which the roundings of float32 sums are in proportion; then one rounding to dtype
    magnitudes = exact.abs()
    if weight.minima is not None and weight.minimum_steps is not None:  # which are summed apart
        none = torch.zeros_like(weight.minimum_steps)
        scaled = BlockedWeight(weight.bits, weight.values, weight.scales, weight.steps, weight.minima, none)
        magnitudes = scaled.dequantized().double().abs() + (exact - scaled.dequantized()).abs()
    of_dtype = torch.finfo(dtype)
    bound = 2e-6 * (x.double().abs() @ magnitudes.T) + of_dtype.eps * (expected.abs() + of_dtype.tiny)
    for packed in (ours.pack(weight), ReferenceKernels().pack(weight)):
        for rows in (0, 1, 2, 7, max(ROWS)):
            found = packed.multiply(x[:rows].contiguous())
            assert found.dtype == dtype
            assert found.is_contiguous()
            assert ((found.double() - expected[:rows]).abs() <= bound[:rows]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_others(ours: Kernels, form: Form, dtype: torch.dtype) -> None:
    """Not by a bit, whatever the tile that a row is in: 208 outputs are units of panels and what is left of them."""
    weight = form.drawn(208, 2)
    packed = ours.pack(weight)
    x = torch.randn(max(ROWS), weight.values.shape[1]).to(dtype)
    alone = torch.cat([packed.multiply(row[None].contiguous()) for row in x])
    for rows in ROWS:
        assert torch.equal(packed.multiply(x[:rows].contiguous()), alone[:rows]), rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_stays_in_its_row(ours: Kernels, form: Form, dtype: torch.dtype) -> None:
    weight = form.drawn(64, 2)
    packed = ours.pack(weight)
    x = torch.randn(8, weight.values.shape[1]).to(dtype)
    expected = packed.multiply(x)
    x[0, 5] = torch.nan
    found = packed.multiply(x)
    assert not found[0].isfinite().any()
    others = [1, 2, 3, 4, 5, 6, 7]
    assert torch.equal(found[others], expected[others])


def test_half_a_block_is_refused(ours: Kernels) -> None:
    weight = Form(8, 16, False, 1).drawn(16, 3)
    with pytest.raises(TypeError, match="expected inputs in whole blocks of 16, got 48"):
        ours.pack(weight)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_check_at_load_takes_these_forms_too(ours: Kernels, bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problem_of_pack(ours, bits, torch.float32, CPU) is None
    right = QuantizedPanels.multiply

    def wrong(self: QuantizedPanels, x: Tensor) -> Tensor:
        return right(self, x) * (1.001 if isinstance(self.unpacked(), BlockedWeight) else 1)

    monkeypatch.setattr(QuantizedPanels, "multiply", wrong)
    assert problem_of_pack(ours, bits, torch.float32, CPU) is not None
