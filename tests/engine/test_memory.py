"""The sizes of an engine, from the memory: arithmetic alone."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from phi3_serve.bench.shapes import config
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.memory import (
    CPU_SHARE,
    EngineSizes,
    FittingSizes,
    GpuMemory,
    block_bytes,
    sizes_on_cpu,
    sizes_on_gpu,
)
from phi3_serve.errors import CheckpointError, MemoryFull

GB = 10**9
MINI_BLOCK = 16 * 393_216  # bytes in half precision
ANY = FittingSizes()


def card(total_gb: float, free_gb: float, step_bytes_per_token: int = 600_000) -> Callable[[int], GpuMemory | None]:
    """A GPU whose steps take memory in proportion to their tokens; None if one does not fit."""

    def measure(budget: int) -> GpuMemory | None:
        tried.append(budget)
        step, free = budget * step_bytes_per_token, int(free_gb * GB)
        return GpuMemory(total=int(total_gb * GB), free=free, step=step, graphs=GB // 4) if step < free else None

    tried: list[int] = []
    measure.tried = tried  # type: ignore[attr-defined]
    return measure


def test_blocks_of_the_real_models() -> None:
    assert block_bytes(config("mini"), torch.bfloat16) == block_bytes(config("mini"), torch.float16) == MINI_BLOCK
    assert block_bytes(config("medium"), torch.bfloat16) == 16 * 204_800


@pytest.mark.parametrize("kv_cache_dtype", ["int8", "fp8"])
def test_a_cache_in_8_bits_holds_nearly_twice_or_four_times_the_tokens(kv_cache_dtype: KvCacheDtype) -> None:
    in_8_bits = block_bytes(config("mini"), torch.bfloat16, kv_cache_dtype)
    assert in_8_bits == block_bytes(config("mini"), torch.float32, kv_cache_dtype) == 16 * 32 * 64 * (96 + 4)
    assert MINI_BLOCK / in_8_bits == 1.92
    wanted = FittingSizes(kv_cache_dtype=kv_cache_dtype)
    sizes = sizes_on_gpu(card(24, 16), in_8_bits, wanted)
    assert sizes.kv_cache_dtype == kv_cache_dtype
    assert sizes.num_blocks / sizes_on_gpu(card(24, 16), MINI_BLOCK, ANY).num_blocks == pytest.approx(1.92, rel=1e-3)
    on_cpu = sizes_on_cpu(config("mini"), torch.float32, wanted)
    assert on_cpu.kv_cache_dtype == kv_cache_dtype
    assert on_cpu.num_blocks / sizes_on_cpu(config("mini"), torch.float32, ANY).num_blocks == pytest.approx(
        3.84, rel=0.1
    )


def test_the_cache_gets_what_steps_graphs_and_the_reserve_leave() -> None:
    memory = GpuMemory(total=100 * GB, free=90 * GB, step=2 * GB, graphs=1 * GB)
    assert memory.left(0) == (90 - 2 - 1 - 3) * GB
    sizes = sizes_on_gpu(lambda _: memory, MINI_BLOCK, FittingSizes(adapter_bytes=0))
    assert sizes == EngineSizes(num_blocks=84 * GB // MINI_BLOCK, token_budget=2048, max_rows=256)
    assert 0 <= memory.left(0) - sizes.num_blocks * MINI_BLOCK < MINI_BLOCK


def test_adapters_and_a_second_set_of_graphs_are_counted_before_the_cache() -> None:
    memory = GpuMemory(total=100 * GB, free=90 * GB, step=2 * GB, graphs=1 * GB)
    sizes = sizes_on_gpu(lambda _: memory, MINI_BLOCK, ANY)
    assert sizes.adapter_bytes == 3 * GB
    assert sizes.num_blocks == (90 - 2 - 2 - 3 - 3) * GB // MINI_BLOCK
    sizes = sizes_on_gpu(lambda _: memory, MINI_BLOCK, FittingSizes(adapter_bytes=10 * GB))
    assert sizes.num_blocks == (90 - 2 - 2 - 3 - 10) * GB // MINI_BLOCK


def test_a_replica_takes_its_share_of_a_gpu_whether_or_not_another_one_has_come() -> None:
    alone = GpuMemory(total=80 * GB, free=70 * GB, step=2 * GB, graphs=1 * GB, own=9 * GB)
    half = FittingSizes(adapter_bytes=0, gpu_share=0.5)
    sizes = sizes_on_gpu(lambda _: alone, MINI_BLOCK, half)
    assert sizes.num_blocks == int((40 - 9 - 2 - 1 - 0.03 * 40) * GB) // MINI_BLOCK
    second = replace(alone, free=(70 - 31) * GB)
    assert sizes_on_gpu(lambda _: second, MINI_BLOCK, half) == sizes
    crowded = replace(alone, free=10 * GB)
    assert sizes_on_gpu(lambda _: crowded, MINI_BLOCK, half).num_blocks == int((10 - 3 - 1.2) * GB) // MINI_BLOCK
    assert sizes_on_gpu(lambda _: alone, MINI_BLOCK, FittingSizes(adapter_bytes=0)).num_blocks > 2 * sizes.num_blocks


def test_steps_do_not_become_smaller_for_adapters_that_nobody_asked_for() -> None:
    memory = GpuMemory(total=10 * GB, free=2 * GB, step=GB // 2, graphs=GB // 4)
    sizes = sizes_on_gpu(lambda _: memory, MINI_BLOCK, ANY)
    assert (sizes.token_budget, sizes.adapter_bytes) == (2048, 0)
    asked = FittingSizes(adapter_bytes=GB // 2)
    sizes = sizes_on_gpu(lambda _: memory, MINI_BLOCK, asked)
    assert (sizes.token_budget, sizes.adapter_bytes) == (256, GB // 2)


@pytest.mark.parametrize(
    ("name", "total_gb", "free_gb", "budget", "tokens"),
    [("H200", 150, 142, 2048, 340_000), ("A10", 24, 16, 2048, 34_000), ("T4", 16, 7.8, 2048, 14_000)],
)
def test_mini_on_cards(name: str, total_gb: float, free_gb: float, budget: int, tokens: int) -> None:
    sizes = sizes_on_gpu(card(total_gb, free_gb), MINI_BLOCK, ANY)
    assert sizes.token_budget == budget
    assert 0.9 * tokens < sizes.num_blocks * 16 < 1.1 * tokens


def test_a_step_that_does_not_fit_is_halved() -> None:
    measure = card(8, 1.4, step_bytes_per_token=1_000_000)
    sizes = sizes_on_gpu(measure, MINI_BLOCK, ANY)
    assert measure.tried == [2048, 1024, 512]  # type: ignore[attr-defined]
    assert sizes.token_budget == 512
    assert sizes.num_blocks * 16 >= 512


def test_a_cache_that_holds_less_than_a_step_halves_it_too() -> None:
    """The last step that fits beside a cache of as many tokens is taken."""
    fits = GpuMemory(total=GB, free=30_000_000 + 300 * MINI_BLOCK // 16, step=0, graphs=0)
    assert sizes_on_gpu(lambda _: fits, MINI_BLOCK, ANY) == EngineSizes(num_blocks=18, token_budget=256, max_rows=256)


@pytest.mark.parametrize(
    ("memory", "problem"),
    [
        (None, "the GPU has no memory for a step of 64 tokens beside the weights"),
        (
            GpuMemory(total=16 * GB, free=GB // 2, step=GB // 4, graphs=GB // 8),
            "beside the weights, the GPU has 0.50 GB free; a step of 64 tokens, the graphs and a reserve take 0.85 GB, "
            "and the keys of as many tokens 0.03 GB",
        ),
    ],
)
def test_a_card_that_is_too_small_is_refused(memory: GpuMemory | None, problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        sizes_on_gpu(lambda _: memory, MINI_BLOCK, ANY)
    assert caught.value.message == problem


def test_a_share_that_is_too_small_is_refused_with_the_least_one() -> None:
    """Mini in bfloat16 on a GPU with 24 GB."""
    memory = GpuMemory(total=24 * GB, free=15 * GB, step=GB // 10, graphs=GB // 4, own=8 * GB)
    with pytest.raises(MemoryFull) as caught:
        sizes_on_gpu(lambda _: memory, MINI_BLOCK, FittingSizes(gpu_share=0.3))
    assert caught.value.message == (
        "num_gpus is 0.3, which is 7.20 GB of the GPU; the weights and CUDA take 8.00 GB; a step of 64 tokens, the "
        "graphs and a reserve take 0.57 GB, and the keys of as many tokens 0.03 GB; num_gpus must be at least 0.36"
    )
    assert sizes_on_gpu(lambda _: memory, MINI_BLOCK, FittingSizes(gpu_share=0.36)).num_blocks >= 4
    with pytest.raises(MemoryFull):
        sizes_on_gpu(lambda _: memory, MINI_BLOCK, FittingSizes(gpu_share=0.35))


@pytest.mark.parametrize(
    ("own_gb", "begins"),
    [
        (15, "num_gpus is 0.9, which is 14.40 GB of the GPU; the weights and CUDA take 15.00 GB; a step"),
        (8, "beside the weights, the GPU has 0.50 GB free; a step"),  # other processes have the rest
    ],
)
def test_no_share_is_named_that_would_not_help(own_gb: int, begins: str) -> None:
    memory = GpuMemory(total=16 * GB, free=GB // 2, step=GB // 4, graphs=GB // 8, own=own_gb * GB)
    with pytest.raises(MemoryFull) as caught:
        sizes_on_gpu(lambda _: memory, MINI_BLOCK, FittingSizes(gpu_share=0.9))
    assert caught.value.message.startswith(begins)
    assert caught.value.message.endswith("and the keys of as many tokens 0.03 GB")


def test_limits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    limited = FittingSizes(max_blocks=100, prefix_cache=False)
    sizes = sizes_on_gpu(card(150, 142), MINI_BLOCK, limited)
    assert (sizes.num_blocks, sizes.prefix_cache) == (100, False)
    sizes = sizes_on_cpu(config("mini"), torch.float32, limited)
    assert sizes == EngineSizes(num_blocks=100, token_budget=128, max_rows=128, prefix_cache=False)


def test_a_cpu_gives_a_share_of_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=10 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    sizes = sizes_on_cpu(config("mini"), torch.bfloat16, ANY)
    assert sizes.token_budget == 256
    assert sizes.num_blocks == int(10 * GB * CPU_SHARE) // MINI_BLOCK
    memory.available = 10**15
    assert sizes_on_cpu(config("mini"), torch.bfloat16, ANY).num_blocks == 64 * 4096 // 16
    memory.available = MINI_BLOCK
    with pytest.raises(MemoryFull, match=r"beside the weights, 1\.9 MB of memory are left for the key-value cache"):
        sizes_on_cpu(config("mini"), torch.bfloat16, ANY)
