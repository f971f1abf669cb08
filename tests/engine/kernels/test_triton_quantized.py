"""Linear layers with weights of fewer bits in Triton's interpreter. ``make fuzz-kernels`` draws more forms and sizes."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import GROUP, Bits, BlockedWeight, QuantizedWeight, Weight
from phi3_serve.engine.kernels.self_check import problem_of_pack
from phi3_serve.engine.kernels.triton_quantized import MAX_FEW_ROWS, TritonWeight, TritonWeights

pytestmark = pytest.mark.slow  # in Triton's interpreter

CPU = torch.device("cpu")
OUTPUTS = 37  # a program's and a few more
ROWS = (0, 1, 19, 70, MAX_FEW_ROWS + 1)  # none, the kernel of one row, one tile, two, and dequantised


@dataclass(frozen=True)
class Form:
    """A form of weights; ``group`` of None is that of a ``QuantizedWeight``."""

    bits: Bits
    scales: torch.dtype = torch.float16
    group: int | None = None
    groups: int = 1  # of a block
    has_minima: bool = False

    def drawn(self, outputs: int, inputs: int) -> Weight:
        """Every value that the form has; weights of about 1, and all scales differ."""
        if self.group is None:
            columns = 1 if self.bits == 8 else -(-inputs // GROUP)
            scales = (torch.rand(outputs, columns) - 0.5) * 2.0 ** (2 - self.bits)
            least = -127 if self.bits == 8 else -8
            return QuantizedWeight(self.bits, integers(least, -1 - least, outputs, inputs), scales.to(self.scales))
        values = integers(0, 15, outputs, inputs) if self.bits == 4 else integers(-128, 127, outputs, inputs)
        blocks = inputs // self.group // self.groups
        of_blocks = [torch.randn(outputs, blocks).mul(2.0**-self.bits / 60).half() for _ in range(2)]
        steps = [integers(-128, 127, outputs, inputs // self.group) for _ in range(2)]
        return BlockedWeight(
            self.bits, values, of_blocks[0], steps[0], *((of_blocks[1] * 8, steps[1]) if self.has_minima else ())
        )


def integers(least: int, most: int, *size: int) -> Tensor:
    return torch.randint(least, most + 1, size, dtype=torch.int8)


def check(weight: Weight, x: Tensor) -> None:
    """The products with ``x``, against float64 over the weights in the dtype of ``x``."""
    packed = TritonWeight(weight)
    exact = weight.dequantized().to(x.dtype).double()
    expected = x.double() @ exact.T
    # of the sum of magnitudes, to which the roundings of float32 sums are in proportion; then one rounding to dtype
    of_dtype = torch.finfo(x.dtype)
    bound = 2e-6 * (x.double().abs() @ exact.abs().T) + of_dtype.eps * (expected.abs() + of_dtype.tiny)
    if x.dtype == torch.float16 and len(x) > MAX_FEW_ROWS:
        bound *= 4  # torch sums float16 on a CPU in its own way
    found = packed.multiply(x)
    assert (found.dtype, found.shape) == (x.dtype, expected.shape)
    assert ((found.double() - expected).abs() <= bound).all()


FORMS = [
    (Form(8, torch.float32), 353, torch.bfloat16),
    (Form(4, torch.bfloat16), 353, torch.float32),
    (Form(4), 640, torch.bfloat16),
    (Form(4, torch.float32), 96, torch.float16),
    (Form(4, group=32, groups=4, has_minima=True), 640, torch.float32),
    (Form(8, group=32, groups=8, has_minima=True), 256, torch.float16),
    (Form(8, group=32), 320, torch.float32),
    (Form(8, group=16, groups=10), 320, torch.bfloat16),
]


@pytest.mark.parametrize(("form", "inputs", "dtype"), FORMS, ids=str)
def test_products(form: Form, inputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(20261201)
    weight = form.drawn(OUTPUTS, inputs)
    x = torch.randn(max(ROWS), inputs).to(dtype)
    for rows in ROWS:
        check(weight, x[:rows].contiguous())


@pytest.mark.parametrize(("form", "inputs"), [pair[:2] for pair in FORMS], ids=str)
def test_what_is_packed_is_what_is_unpacked(form: Form, inputs: int) -> None:
    weight = form.drawn(OUTPUTS, inputs)
    packed = TritonWeight(weight)
    unpacked = packed.unpacked()
    assert type(unpacked) is type(weight)
    assert unpacked.bits == weight.bits
    assert torch.equal(unpacked.values, weight.values)
    assert torch.equal(unpacked.dequantized(), weight.dequantized())
    padded = -(-inputs // GROUP) * GROUP
    assert packed.num_bytes == weight.num_bytes - weight.values.nbytes + OUTPUTS * padded * form.bits // 8


def test_what_is_no_number_stays_in_its_row() -> None:
    packed = TritonWeight(Form(4).drawn(OUTPUTS, 64))
    x = torch.randn(5, 64)
    expected = packed.multiply(x)
    x[3, 5] = torch.nan
    found = packed.multiply(x)
    assert found[3].isnan().all()
    others = [0, 1, 2, 4]
    assert torch.equal(found[others], expected[others])
    assert packed.multiply(x[3:4]).isnan().all()


def test_rows_of_another_width_are_refused() -> None:
    packed = TritonWeight(Form(4).drawn(OUTPUTS, 64))
    for x in (torch.zeros(2, 63), torch.zeros(64, 2).T, torch.zeros(64)):
        with pytest.raises(TypeError, match=r"expected contiguous \[rows, 64\]"):
            packed.multiply(x)


def test_a_kernel_that_is_right_is_kept() -> None:
    assert problem_of_pack(TritonWeights(), 4, torch.bfloat16, CPU) is None


def test_a_kernel_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = TritonWeight.multiply_row
    monkeypatch.setattr(TritonWeight, "multiply_row", lambda self, x: right(self, x.flip(1).contiguous()))
    problem = problem_of_pack(TritonWeights(), 4, torch.float32, CPU)
    assert problem is not None
    assert problem.startswith("it differs from the reference by ")


def test_a_kernel_that_does_not_compile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(TritonWeight, "multiply_rows", fails)
    assert problem_of_pack(TritonWeights(), 4, torch.float32, CPU) == "RuntimeError: out of resource: shared memory"


def test_an_error_of_the_device_is_no_problem_of_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(TritonWeight, "multiply_rows", fails)
    with pytest.raises(torch.AcceleratorError):
        problem_of_pack(TritonWeights(), 4, torch.float32, CPU)
