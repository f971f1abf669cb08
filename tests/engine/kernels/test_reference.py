"""The reference kernels compute and round as the modules of transformers do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.phi3.modeling_phi3 import Phi3MLP, Phi3RMSNorm, apply_rotary_pos_emb

from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.reference import ReferenceKernels

KERNELS = ReferenceKernels()


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [64, 3072, 5120])
def test_add_rms_norm(dtype: torch.dtype, width: int) -> None:
    hidden, delta = torch.randn(2, 7, width).to(dtype)
    module: Any = Phi3RMSNorm(width, 1e-5).to(dtype)
    module.weight.data = torch.randn(width).to(dtype)
    expected_sum = hidden + delta
    normed = KERNELS.add_rms_norm(hidden, delta, module.weight.data, 1e-5)
    assert torch.equal(hidden, expected_sum)
    assert torch.equal(normed, module(expected_sum))


def test_rotate(dtype: torch.dtype) -> None:
    heads, kv_heads, dim, rotary = 4, 2, 32, 24
    qkv = torch.randn(5, heads + 2 * kv_heads, dim).to(dtype)
    cosine, sine = (torch.cat(2 * [torch.randn(5, rotary // 2)], -1).to(dtype) for _ in range(2))
    query, key, value = (part.transpose(0, 1)[None] for part in qkv.split((heads, kv_heads, kv_heads), 1))
    rotated = apply_rotary_pos_emb(query, key, cosine[None], sine[None])
    signed: Tensor = torch.cat((-sine[:, : rotary // 2], sine[:, rotary // 2 :]), -1)
    cache = torch.zeros(2 * kv_heads, 16, dim, dtype=dtype)
    expected = torch.cat((*rotated, value), 1)[0].transpose(0, 1)
    KERNELS.rotate_and_store(qkv, (cosine[:, None], signed[:, None]), torch.arange(5), KvCache(cache))
    assert torch.equal(qkv, expected)
    assert torch.equal(cache[:, :5], expected[:, heads:].transpose(0, 1))


def test_silu_product(dtype: torch.dtype) -> None:
    config: Any = SimpleNamespace(hidden_size=2, intermediate_size=300, hidden_act="silu")
    module: Any = Phi3MLP(config)
    gate_up = (torch.randn(5, 600) * 4).to(dtype)
    module.gate_up_proj = module.down_proj = torch.nn.Identity()
    assert torch.equal(KERNELS.silu_product(gate_up), module(gate_up))
