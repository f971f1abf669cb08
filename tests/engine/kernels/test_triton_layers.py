"""The kernels of a layer in Triton's interpreter against the reference. ``make fuzz-kernels`` draws more shapes."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from phi3_serve.engine.kernels import triton_layers
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCache, rounded
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.triton_linear import multiply_row, row_config
from phi3_serve.engine.kernels.triton_sampling import choose_tokens

pytestmark = pytest.mark.slow  # in Triton's interpreter

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # one unit in the last place
MAX_DIFFERING = 5e-3  # share of the numbers that are rounded: sums and exponentials differ in their last bits
NUM_SLOTS = 64

REFERENCE = ReferenceKernels()


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


def assert_close(ours: Tensor, theirs: Tensor, *, roundings: int = 1) -> None:
    rtol = roundings * TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=TOLERANCE[torch.float32])
    if ours.dtype != torch.float32:
        assert (ours != theirs).sum() <= MAX_DIFFERING * ours.numel()


@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (5, 1000), (2, 3072), (2, 5120), (4, 33), (0, 64)])
def test_add_rms_norm(dtype: torch.dtype, tokens: int, width: int) -> None:
    hidden, delta = torch.randn(2, tokens, width).to(dtype)
    weight = torch.randn(width).to(dtype)
    expected_sum = hidden.clone()
    expected = REFERENCE.add_rms_norm(expected_sum, delta, weight, 0.1)
    normed = triton_layers.add_rms_norm(hidden, delta, weight, 0.1)
    assert_close(hidden, expected_sum)
    assert_close(normed, expected)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # it is 0 for these gates
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (5, 1500), (3, 33), (0, 64)])
def test_silu_product(dtype: torch.dtype, tokens: int, width: int) -> None:
    gate_up = (torch.randn(tokens, 2 * width) * 20).to(dtype)
    gate_up[:1, :6] = torch.tensor([-1000.0, 1000.0, -80.0, 89.0, 0.0, -0.0])
    assert_close(triton_layers.silu_product(gate_up), REFERENCE.silu_product(gate_up), roundings=2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary", "slot_dtype"),
    [
        (4, 2, 96, 72, torch.int32),
        (3, 1, 16, 12, torch.int64),
        (8, 1, 40, 40, torch.int32),
        (8, 8, 96, 96, torch.int64),
        (16, 4, 128, 128, torch.int32),
    ],
)
def test_rotate_and_store(
    dtype: torch.dtype, slot_dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary: int
) -> None:
    """The last two tokens have no slot. With int32 slots, the fourth is padding, too. 16 heads are one program."""
    qkv = torch.randn(7, heads + 2 * kv_heads, dim).to(dtype)
    rotation = (torch.randn(7, 1, rotary).to(dtype), torch.randn(7, 1, rotary).to(dtype))
    slots = torch.cat([torch.tensor([0]), 1 + torch.randperm(NUM_SLOTS - 1)[:4]]).to(slot_dtype)
    if slot_dtype == torch.int32:
        slots[3] = -1
    memory = torch.randn(1 + 2 * kv_heads, NUM_SLOTS, dim).to(dtype)
    before_cache, cache = memory[0].clone(), memory[1:]  # slot -1 of the first head is in front of the cache
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    REFERENCE.rotate_and_store(expected_qkv, rotation, slots, KvCache(expected_cache))
    before = cache.clone()
    triton_layers.rotate_and_store(qkv, rotation, slots, KvCache(cache))
    assert_close(qkv, expected_qkv)
    assert_close(cache, expected_cache)
    assert torch.equal(memory[0], before_cache)
    unwritten = [slot for slot in range(NUM_SLOTS) if slot not in slots.tolist()]
    assert torch.equal(cache[:, unwritten], before[:, unwritten])
    assert torch.equal(qkv[:, heads + kv_heads :], expected_qkv[:, heads + kv_heads :])  # values are not rotated


@pytest.mark.parametrize("stored", EIGHT_BITS.values(), ids=str)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotary", "number_dtype"),
    [(4, 2, 96, 72, torch.bfloat16), (3, 1, 16, 16, torch.float32), (8, 8, 40, 24, torch.float16)],
)
def test_store_in_8_bits(
    stored: torch.dtype, number_dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary: int
) -> None:
    """Bit by bit what torch rounds the same rotated keys to. The fourth token is padding, and the fifth has zeros."""
    qkv = torch.randn(7, heads + 2 * kv_heads, dim).to(number_dtype)
    qkv[4, heads:] = 0
    rotation = (torch.randn(7, 1, rotary).to(number_dtype), torch.randn(7, 1, rotary).to(number_dtype))
    slots = torch.tensor([0, 50, 7, -1, 33], dtype=torch.int32)
    values, scales = rounded(torch.randn(2 * kv_heads, NUM_SLOTS, dim), stored)
    expected = KvCache(values.clone(), scales.clone())
    triton_layers.rotate_and_store(qkv, rotation, slots, KvCache(values, scales))
    is_stored = slots >= 0
    expected.store(slots[is_stored].long(), qkv[:5][is_stored, heads:])
    assert torch.equal(values.view(torch.int8), expected.values.view(torch.int8))
    assert expected.scales is not None
    assert torch.equal(scales, expected.scales)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity times zero
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_is_none_in_8_bits(number: float) -> None:
    qkv = torch.randn(2, 3, 16)
    qkv[1, 2, 3] = number
    cache = KvCache(*rounded(torch.randn(2, NUM_SLOTS, 16), torch.int8))
    triton_layers.rotate_and_store(qkv, (torch.ones(2, 1, 16), torch.zeros(2, 1, 16)), torch.arange(2), cache)
    keys, values = cache.read(torch.arange(2))
    assert values[:, 1].isnan().all()
    assert keys.isfinite().all()
    assert values[:, 0].isfinite().all()


@pytest.mark.parametrize(("outputs", "inputs"), [(70, 1536), (33, 2048)])  # with several blocks of inputs
def test_multiply_row(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    x, weight = torch.randn(1, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    config = row_config(outputs, inputs)
    assert config is not None
    bound = 0.3 if dtype == torch.bfloat16 else 4e-2 if dtype == torch.float16 else 2e-4
    torch.testing.assert_close(multiply_row(x, weight, config), linear(x, weight), rtol=1e-2, atol=bound)
    assert row_config(outputs, inputs + 96) is None


def test_no_number_stays_where_it_is(dtype: torch.dtype) -> None:
    hidden, delta = torch.randn(2, 3, 64).to(dtype)
    hidden[1, 7] = torch.nan
    normed = triton_layers.add_rms_norm(hidden, delta, torch.ones(64, dtype=dtype), 1e-5)
    assert normed[1].isnan().all()
    assert normed[[0, 2]].isfinite().all()


def test_what_the_kernels_cannot_read_is_refused() -> None:
    with pytest.raises(TypeError, match="expected contiguous"):
        triton_layers.silu_product(torch.zeros(8, 2).T)
    with pytest.raises(TypeError, match="expected contiguous"):
        triton_layers.add_rms_norm(torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.float16), torch.zeros(8), 1e-5)
    rotation = (torch.ones(1, 1, 16), torch.zeros(1, 1, 16))
    for cache in (
        KvCache(torch.zeros(2, 16, 16, dtype=torch.int8)),
        KvCache(torch.zeros(2, 16, 16), torch.zeros(2, 16)),
    ):
        with pytest.raises(TypeError, match="or in 8 bits with scales"):
            triton_layers.rotate_and_store(torch.zeros(1, 3, 16), rotation, torch.tensor([0]), cache)


def chosen(logits: Tensor, floats: tuple[float, ...], ints: tuple[int, ...], step: int = 0) -> Tensor:
    """``floats``: temperature, top_p and min_p."""
    count = len(logits)
    tokens = torch.empty(count, dtype=torch.int32)
    of_rows = torch.tensor([(1.0, 1.0, 0.0, 0.0, *floats, 1.0, 0.0, 0.0)] * count)
    settings, nothing = torch.tensor([(-1, *ints, 0, 0)] * count, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
    choose_tokens(logits, of_rows, settings, (nothing, nothing), nothing, torch.tensor([7, step]), tokens)
    return tokens


def test_greedy_takes_the_first_of_the_largest(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 50).to(dtype)
    logits[1, [9, 30]] = 60.0
    logits[2, 5] = torch.nan
    logits[3] = -torch.inf
    tokens = chosen(logits, (1.0, 1.0, 0.0), (0, 0, 1)).tolist()
    assert tokens == [int(logits[0].argmax()), 9, -1, -1]


def test_minus_zero_is_zero() -> None:
    logits = torch.tensor([0.5, 0.0, -0.0, -9.0]).expand(24, 4).contiguous()
    assert set(chosen(logits, (1.0, 1.0, 0.0), (1, 2, 1)).tolist()) == {0, 1, 2}


def test_nothing_is_drawn_from_infinite_scores() -> None:
    logits = torch.zeros(2, 50)
    logits[1, 7] = torch.inf
    first, second = chosen(logits, (1.0, 1.0, 0.0), (1, 0, 1)).tolist()
    assert first >= 0
    assert second == -1
    assert chosen(logits, (1.0, 1.0, 0.0), (0, 0, 1)).tolist() == [0, 7]


@pytest.mark.parametrize(
    ("floats", "ints", "kept", "dtype"),
    [
        ((1.0, 1.0, 0.0), (1, 2, 1), {3, 4, 5}, torch.float16),  # the second largest score is that of two tokens
        ((1.0, 1.0, 0.0), (1, 1, 1), {3}, torch.float32),
        ((1.0, 0.6, 0.0), (1, 0, 1), {3, 5}, torch.float32),  # of the two, the lower id is beyond the nucleus
        ((1.0, 1.0, 0.5), (1, 0, 1), {3}, torch.bfloat16),
        ((1.0, 0.01, 0.0), (1, 0, 3), {3, 4, 5}, torch.bfloat16),
        ((0.1, 0.9, 0.0), (1, 0, 1), {3}, torch.float16),
    ],
    ids=str,
)
def test_draws_stay_in_the_support(
    floats: tuple[float, ...], ints: tuple[int, ...], kept: set[int], dtype: torch.dtype
) -> None:
    assert set(chosen(_scores(16, dtype), floats, ints).tolist()) == kept


def test_steps_draw_with_different_noise() -> None:
    scores = _scores(12, torch.float32)
    assert not torch.equal(chosen(scores, (1.0, 1.0, 0.0), (1, 0, 1), 0), chosen(scores, (1.0, 1.0, 0.0), (1, 0, 1), 1))


def _scores(rows: int, dtype: torch.dtype) -> Tensor:
    """Those of six tokens, two of which are equal."""
    return torch.tensor([0.02, 0.03, 0.05, 0.5, 0.2, 0.2]).log().to(dtype).expand(rows, 6).contiguous()
