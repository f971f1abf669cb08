"""The Triton kernels besides attention, in Triton's interpreter, against torch and against transformers."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm

from phi3_serve.engine.kernels import triton_layers
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.triton_linear import multiply_row, row_config
from phi3_serve.engine.kernels.triton_sampling import choose_tokens

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[ours.dtype], atol=TOLERANCE[ours.dtype])


@pytest.mark.parametrize(("rows", "width"), [(1, 96), (5, 300)])
def test_add_rms_norm_rounds_as_transformers_does(dtype: torch.dtype, rows: int, width: int) -> None:
    hidden, delta = (torch.randn(rows, width).to(dtype) for _ in range(2))
    module = Phi3RMSNorm(width, eps=1e-5).to(dtype)
    module.weight.data = torch.randn(width).to(dtype)
    expected_sum = hidden + delta
    normed = triton_layers.add_rms_norm(hidden, delta, module.weight.data, 1e-5)
    expected = module(expected_sum).detach()
    if dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
        assert_close(hidden, expected_sum)
        torch.testing.assert_close(normed, expected, rtol=3.2e-2, atol=3.2e-2)
        return
    assert torch.equal(hidden, expected_sum)
    assert_close(normed, expected)
    if dtype == torch.float16:
        assert (normed == expected).float().mean() > 0.99  # one rounding less changes a quarter of the numbers


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "rotary"), [(4, 4, 32, 32), (8, 2, 48, 36), (3, 1, 16, 16)])
def test_rotate_and_store(dtype: torch.dtype, heads: int, kv_heads: int, dim: int, rotary: int) -> None:
    """Token 2 has no slot, and the last one is beyond the slots."""
    qkv = torch.randn(7, heads + 2 * kv_heads, dim).to(dtype)
    rotation = (torch.randn(7, 1, rotary).to(dtype), torch.randn(7, 1, rotary).to(dtype))
    slots = torch.randperm(64)[:6].int()
    slots[2] = -1
    cache = torch.randn(2 * kv_heads, 64, dim).to(dtype)
    expected_qkv, expected_cache = qkv.clone(), cache.clone()
    triton_layers.rotate_and_store(qkv, rotation, slots, cache)
    ReferenceKernels().rotate_and_store(expected_qkv, rotation, slots, expected_cache)
    assert_close(qkv, expected_qkv)
    assert_close(cache, expected_cache)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (3, 1100)])
def test_silu_product(dtype: torch.dtype, rows: int, width: int) -> None:
    gate_up = (torch.randn(rows, 2 * width) * 10).to(dtype)
    assert_close(triton_layers.silu_product(gate_up), ReferenceKernels().silu_product(gate_up))


@pytest.mark.parametrize(("outputs", "inputs"), [(70, 512), (33, 1024)])
def test_multiply_row(dtype: torch.dtype, outputs: int, inputs: int) -> None:
    x, weight = torch.randn(1, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    config = row_config(outputs, inputs)
    assert config is not None
    bound = 0.3 if dtype == torch.bfloat16 else 4e-2 if dtype == torch.float16 else 2e-4
    torch.testing.assert_close(multiply_row(x, weight, config), linear(x, weight), rtol=1e-2, atol=bound)
    assert row_config(outputs, inputs + 96) is None


def chosen(logits: Tensor, floats: tuple[float, ...], ints: tuple[int, ...], step: int = 0) -> Tensor:
    count = len(logits)
    tokens = torch.empty(count, dtype=torch.int32)
    settings = torch.tensor([floats] * count), torch.tensor([ints] * count, dtype=torch.int32)
    choose_tokens(logits, *settings, torch.tensor([7, step]), tokens)
    return tokens


def test_greedy_takes_the_first_of_the_largest(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 50).to(dtype)
    logits[1, [9, 30]] = 60.0
    logits[2, 5] = torch.nan
    logits[3] = -torch.inf
    tokens = chosen(logits, (1.0, 1.0, 0.0), (0, 0, 1)).tolist()
    assert tokens == [int(logits[0].argmax()), 9, -1, -1]


@pytest.mark.parametrize(
    ("floats", "ints", "kept"),
    [
        ((1.0, 1.0, 0.0), (1, 2, 1), {3, 4, 5}),  # the second largest score is that of two tokens
        ((1.0, 0.6, 0.0), (1, 0, 1), {3, 5}),  # of the two, the lower id is beyond the nucleus
        ((1.0, 1.0, 0.5), (1, 0, 1), {3}),
        ((1.0, 0.01, 0.0), (1, 0, 3), {3, 4, 5}),
        ((0.1, 0.9, 0.0), (1, 0, 1), {3}),
    ],
)
def test_draws_stay_in_the_support(
    dtype: torch.dtype, floats: tuple[float, ...], ints: tuple[int, ...], kept: set[int]
) -> None:
    probs = torch.tensor([0.02, 0.03, 0.05, 0.5, 0.2, 0.2])
    logits = probs.log().to(dtype).expand(24, 6).contiguous()
    assert set(chosen(logits, floats, ints).tolist()) == kept
    assert not torch.equal(chosen(logits, (1.0, 1.0, 0.0), (1, 0, 1), 0), chosen(logits, (1.0, 1.0, 0.0), (1, 0, 1), 1))
