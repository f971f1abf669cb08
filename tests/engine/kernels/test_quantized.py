"""Weights in 8 and 4 bits: how they are rounded, packed and multiplied by, at every level this processor has."""

import ctypes
import mmap
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from phi3_serve.engine.kernels.contract import GROUP, Bits, Fp8Weight, Kernels, PackedWeight, QuantizedWeight, Weight
from phi3_serve.engine.kernels.quantize import quantize, quantize_in_torch
from phi3_serve.engine.kernels.quantized_panels import PANELS_AT_ONCE, QuantizedPanels
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kernels.self_check import problem_of_pack

CPU = torch.device("cpu")
# [out, in]: multiples of what the kernels take at once, and what is left of them
SHAPES = [(16, 32), (64, 96), (48, 64), (17, 33), (128, 7), (208, 320), (33, 1024)]
ROWS = [*range(1, 15), 16, 18, 23, 24, 25, 40, 300]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to have made kernels with")


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    torch.manual_seed(20261130)


@pytest.fixture(params=[8, 4])
def bits(request: pytest.FixtureRequest) -> Bits:
    return request.param  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Format:
    bits: Bits
    scales: torch.dtype = torch.float32


@pytest.fixture(params=[Format(8), Format(4, torch.bfloat16), Format(4, torch.float16), Format(4)], ids=str)
def format(request: pytest.FixtureRequest) -> Format:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def ours(each_level: str) -> Kernels:
    kernels = select_kernels(CPU, torch.float32, 64)
    assert kernels.name == f"cpu ({each_level.replace('_', '-')})"
    return kernels


def drawn(format: Format, outputs: int, inputs: int) -> QuantizedWeight:
    """Every value that the format has, and scales of both signs."""
    if format.bits == 8:
        return QuantizedWeight(8, integers(-127, 127, outputs, inputs), torch.rand(outputs, 1) * 0.01)
    scales = (torch.rand(outputs, -(-inputs // GROUP)) - 0.5).to(format.scales)
    return QuantizedWeight(4, integers(-8, 7, outputs, inputs), scales)


def integers(least: int, most: int, *size: int) -> Tensor:
    return torch.randint(least, most + 1, size, dtype=torch.int8)


def same(one: Weight | Fp8Weight, other: QuantizedWeight) -> bool:
    assert isinstance(one, QuantizedWeight)
    return one.bits == other.bits and torch.equal(one.values, other.values) and torch.equal(one.scales, other.scales)


@pytest.mark.parametrize(("outputs", "inputs"), [*SHAPES, (16 * PANELS_AT_ONCE + 20, 64)])
def test_what_is_packed_is_what_is_unpacked(format: Format, outputs: int, inputs: int) -> None:
    weight = drawn(format, outputs, inputs)
    packs: list[PackedWeight] = [k.pack(weight) for k in (select_kernels(CPU, torch.float32, 64), ReferenceKernels())]
    assert isinstance(packs[0], QuantizedPanels)
    assert all(same(pack.unpacked(), weight) for pack in packs)


def test_a_weight_takes_its_bits_and_its_share_of_a_scale(bits: Bits) -> None:
    weight = drawn(Format(bits, torch.float32 if bits == 8 else torch.bfloat16), 320, 640)
    scales = 320 * 4 if bits == 8 else 320 * 640 // GROUP * 2
    for kernels in (select_kernels(CPU, torch.float32, 64), ReferenceKernels()):
        assert kernels.pack(weight).num_bytes == 320 * 640 * bits // 8 + scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_products(ours: Kernels, format: Format, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight = drawn(format, outputs, inputs)
    exact = weight.dequantized().double()
    x = torch.randn(max(ROWS), inputs).to(dtype)
    expected = x.double() @ exact.T
    # of the sum of magnitudes, to which the roundings of float32 sums are in proportion; then one rounding to dtype
    of_dtype = torch.finfo(dtype)
    bound = 2e-6 * (x.double().abs() @ exact.abs().T) + of_dtype.eps * (expected.abs() + of_dtype.tiny)
    for packed in (ours.pack(weight), ReferenceKernels().pack(weight)):
        for rows in (0, 1, 2, 7, max(ROWS)):  # a step that chooses no tokens has none for the head
            found = packed.multiply(x[:rows].contiguous())
            assert found.dtype == dtype
            assert found.is_contiguous()
            assert ((found.double() - expected[:rows]).abs() <= bound[:rows]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_others(ours: Kernels, format: Format, dtype: torch.dtype) -> None:
    """Not by a bit, whatever the tile that a row is in: 208 outputs are units of panels and what is left of them."""
    packed = ours.pack(drawn(format, 208, 352))
    x = torch.randn(max(ROWS), 352).to(dtype)
    alone = torch.cat([packed.multiply(row[None].contiguous()) for row in x])
    for rows in ROWS:
        assert torch.equal(packed.multiply(x[:rows].contiguous()), alone[:rows]), rows
    assert torch.equal(packed.multiply(x[5:18].contiguous()), alone[5:18])


def test_tiny_numbers_do_not_depend_on_the_others_either(ours: Kernels, format: Format) -> None:
    """AMX takes numbers below the normal ones as 0; vectors must do the same."""
    packed = ours.pack(drawn(format, 64, 96))
    x = (torch.randn(20, 96) * torch.logspace(-42, -34, 20)[:, None]).bfloat16()
    together = packed.multiply(x)
    assert together.isfinite().all()
    assert torch.equal(together, torch.cat([packed.multiply(row[None].contiguous()) for row in x]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_does_not_depend_on_the_threads(ours: Kernels, format: Format, dtype: torch.dtype) -> None:
    packed = ours.pack(drawn(format, 208, 352))
    x, threads = torch.randn(9, 352).to(dtype), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(packed.multiply(x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_no_number_stays_in_its_row(ours: Kernels, format: Format, dtype: torch.dtype) -> None:
    packed = ours.pack(drawn(format, 64, 64))
    x = torch.randn(8, 64).to(dtype)
    expected = packed.multiply(x)
    x[0, 5], x[6, 1] = torch.nan, torch.inf
    found = packed.multiply(x)
    assert not found[[0, 6]].isfinite().any()
    others = [1, 2, 3, 4, 5, 7]
    assert torch.equal(found[others], expected[others])


def test_amx_has_its_configuration_of_before_again(each_level: str, ours: Kernels, format: Format) -> None:
    if each_level != "x86_64_v4_amx":
        pytest.skip("this level has no tiles")
    load, store = machine_code(b"\xc4\xe2\x78\x49\x07\xc3"), machine_code(b"\xc4\xe2\x79\x49\x07\xc3")  # of AMX
    packed, x = ours.pack(drawn(format, 64, 96)), torch.randn(5, 96).bfloat16()
    of_another = bytes([1]) + bytes(15) + b"\x40\x00" * 8 + bytes(16) + b"\x03" * 8 + bytes(8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for before in (of_another, bytes(64)):
            load(before)
            packed.multiply(x)
            found = ctypes.create_string_buffer(64)
            store(ctypes.cast(found, ctypes.c_char_p))
            assert found.raw == before
    finally:
        load(bytes(64))
        torch.set_num_threads(threads)


def machine_code(code: bytes) -> Callable[[Any], None]:
    """A function with one argument, an address."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    function = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    function.memory = memory  # type: ignore[attr-defined] # which would be freed otherwise
    return function


def test_rows_of_another_width_are_refused(ours: Kernels, format: Format) -> None:
    packed = ours.pack(drawn(format, 16, 64))
    for x in (torch.zeros(2, 63), torch.zeros(64, 2).T, torch.zeros(64)):
        with pytest.raises(TypeError, match=r"expected contiguous \[rows, 64\]"):
            packed.multiply(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("outputs", "inputs"), [*SHAPES, (300, 64)])
def test_the_library_rounds_as_torch_does(
    each_level: str, bits: Bits, dtype: torch.dtype, outputs: int, inputs: int
) -> None:
    """But for ties, and for scales that are as good as one another."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[1], weight[2, :3] = 0, 1e-36
    found, expected = quantize(weight, bits), quantize_in_torch(weight, bits)
    assert found.values.shape == expected.values.shape
    assert found.scales.shape == expected.scales.shape
    assert (found.scales.dtype, expected.scales.dtype) == ((torch.float32,) * 2 if bits == 8 else (torch.bfloat16,) * 2)
    if bits == 8:
        assert (found.values == expected.values).float().mean() > 0.99
    else:  # a scale and its negative are as good as one another if no weight becomes -8
        assert (found.values.abs() == expected.values.abs()).float().mean() > 0.9
    errors = [(q.dequantized() - weight.float()).square().sum() for q in (found, expected)]
    torch.testing.assert_close(*errors, rtol=5e-3, atol=1e-12)
    assert not found.dequantized()[1].any()


def test_8_bits_round_to_the_nearest_of_255_steps(each_level: str) -> None:
    weight = torch.randn(40, 500) * torch.logspace(-8, 8, 40)[:, None]
    found = quantize(weight, 8)
    largest = weight.abs().amax(1, keepdim=True)
    torch.testing.assert_close(found.scales, largest / 127)
    assert (found.values.abs().amax(1) == 127).all()
    assert ((found.dequantized() - weight).abs() <= (0.5 + 1e-4) * found.scales).all()


def test_4_bits_err_less_than_without_a_search(each_level: str) -> None:
    """The scale that gives the largest weight 7, or -8 by its sign, is what formats without a search have."""
    weight = torch.randn(64, 1024)
    error = (quantize(weight, 4).dequantized() - weight).square().mean().sqrt()
    groups = weight.view(64, -1, GROUP)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    for scale, most in ((extreme / 7, 0.84), (extreme / -8, 0.96)):
        plain = (groups / scale).round().clamp(-8, 7) * scale
        assert error < most * (plain - groups).square().mean().sqrt()


def test_a_weight_that_4_bits_have_is_not_changed(each_level: str) -> None:
    values = integers(-8, 7, 24, 96)
    values[:, ::GROUP] = -8
    weight = QuantizedWeight(4, values, torch.full((24, 3), 0.37).bfloat16())
    found = quantize(weight.dequantized(), 4)
    assert torch.equal(found.dequantized(), weight.dequantized())


def test_the_last_group_may_be_shorter(bits: Bits) -> None:
    weight = torch.randn(20, 45)
    alone, filled_up = quantize(weight, bits), quantize(pad(weight, (0, 19)), bits)
    assert torch.equal(alone.values, filled_up.values[:, :45])
    assert torch.equal(alone.scales, filled_up.scales)


def test_a_kernel_that_is_wrong_is_noticed(bits: Bits, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = select_kernels(CPU, torch.float32, 64)
    for dtype in (torch.float32, torch.bfloat16):
        assert problem_of_pack(kernels, bits, dtype, CPU) is None
    right = QuantizedPanels.multiply
    monkeypatch.setattr(QuantizedPanels, "multiply", lambda self, x: right(self, x.flip(1).contiguous()))
    problem = problem_of_pack(kernels, bits, torch.float32, CPU)
    assert problem is not None
    assert problem.startswith("it differs from the reference by ")
