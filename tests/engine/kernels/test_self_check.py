import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels import self_check, triton_attention
from phi3_serve.engine.kernels.contract import KERNELS, AdaptedTiles, PagedLowRank, PagedQueries
from phi3_serve.engine.kernels.cuda import CudaKernels
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCache, KvCacheDtype
from phi3_serve.engine.kernels.launch_sizes import next_power_of_2
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import ModelShape, check_kernels, with_fallbacks
from phi3_serve.engine.kernels.triton_attention import AttentionConfig
from phi3_serve.engine.kernels.triton_quantized import MAX_FEW_ROWS, MAX_TILE_ROWS, MIN_TILE
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY

CPU = torch.device("cpu")
SHAPE = ModelShape(
    num_heads=4, num_kv_heads=2, head_dim=32, rotary_dim=24, hidden_size=120, intermediate_size=1200, window=20
)
# With a head of two blocks of dimensions, as in mini, and a window that is longer than a block of keys.
LARGER = replace(SHAPE, head_dim=48, rotary_dim=40, window=150)


def found(kernels: Any, dtype: torch.dtype = torch.bfloat16) -> dict[str, str]:
    return {finding.kernel: finding.problem for finding in check_kernels(kernels, SHAPE, device=CPU, dtype=dtype)}


class Forgetful(ReferenceKernels):
    def add_rms_norm(self, hidden: Tensor, delta: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """The sum is not kept."""
        return super().add_rms_norm(hidden.clone(), delta, weight, epsilon)


class OffByOneHead(ReferenceKernels):
    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        return super().attend(qkv, cache, queries, scale, window).roll(32, 1)


class OffByOneKey(ReferenceKernels):
    def attend(self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None) -> Tensor:
        assert window is not None
        return super().attend(qkv, cache, queries, scale, window + 1)


class StoresPadding(ReferenceKernels):
    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        super().rotate_and_store(qkv, rotation, slots.clamp(min=0), cache)


class HeadsInWrongPlace(ReferenceKernels):
    def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
        super().rotate_and_store(qkv, rotation, slots, cache)
        cache.values.copy_(cache.values.roll(1, 0))


class NoNumber(ReferenceKernels):
    def silu_product(self, gate_up: Tensor) -> Tensor:
        product = super().silu_product(gate_up)
        product[-1, -1] = torch.nan
        return product


class ForgetsTheLastPage(ReferenceKernels):
    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        fewer = tiles.tiles.clone()
        fewer[:, 3].sub_(1)
        super().add_low_rank(x, output, change, replace(tiles, tiles=fewer))


class ReadsWhatIsUndefined(ReferenceKernels):
    def add_low_rank(self, x: Tensor, output: Tensor, change: PagedLowRank, tiles: AdaptedTiles) -> None:
        super().add_low_rank(x, output, replace(change, scalings=change.scalings + 1e-6), tiles)


class DoesNotCompile(ReferenceKernels):
    def silu_product(self, gate_up: Tensor) -> Tensor:
        raise RuntimeError("PassManager::run failed")


class BreaksTheDevice(ReferenceKernels):
    def silu_product(self, gate_up: Tensor) -> Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(dtype, marks=pytest.mark.thorough) for dtype in (torch.bfloat16, torch.float16))],
    ids=str,
)
def test_right_kernels_are_kept(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton kernels, in the interpreter."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4, major=9)
    )
    kernels = CudaKernels(num_heads=4, num_kv_heads=2, dtype=dtype, device=CPU)
    findings = check_kernels(kernels, LARGER, device=CPU, dtype=dtype)
    assert findings == []
    assert with_fallbacks(kernels, findings) is kernels


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(32, 32), (40, 10)], ids=["mini", "medium"])
@pytest.mark.parametrize("multiprocessors", [40, 58, 132])
@pytest.mark.parametrize("window", [20, None])
def test_attention_is_checked_in_each_form(
    num_heads: int, num_kv_heads: int, multiprocessors: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel is another one when programs share keys. What a GPU never launches need not be checked."""
    found: set[tuple[bool, bool]] = set()

    def watched(*_: object, config: AttentionConfig, **__: object) -> None:
        found.add((config.skips_masks, config.num_splits > 1))

    properties = SimpleNamespace(multi_processor_count=multiprocessors, major=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(triton_attention, "attend", watched)
    kernels = CudaKernels(num_heads=num_heads, num_kv_heads=num_kv_heads, dtype=torch.bfloat16, device=CPU)
    shape = replace(SHAPE, num_heads=num_heads, num_kv_heads=num_kv_heads, window=window)
    self_check._attend(kernels, self_check._Inputs(shape, CPU, torch.bfloat16, "auto"))
    launched = {
        (config.skips_masks, config.num_splits > 1)
        for number in range(1, 257)
        for config in (kernels._short_config(number), kernels._long_config(number))
    }
    assert found == launched


@pytest.mark.slow
@pytest.mark.parametrize("kv_cache_dtype", EIGHT_BITS)
def test_right_kernels_over_a_cache_in_8_bits_are_kept(
    kv_cache_dtype: KvCacheDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Triton kernels, in the interpreter."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4, major=9)
    )
    kernels = CudaKernels(num_heads=4, num_kv_heads=2, dtype=torch.bfloat16, device=CPU)
    assert check_kernels(kernels, SHAPE, device=CPU, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype) == []


@pytest.mark.parametrize("kv_cache_dtype", EIGHT_BITS)
def test_kernels_that_forget_the_scales_are_found(kv_cache_dtype: KvCacheDtype) -> None:
    class Forgets(ReferenceKernels):
        def attend(
            self, qkv: Tensor, cache: KvCache, queries: PagedQueries, scale: float, window: int | None
        ) -> Tensor:
            assert cache.scales is not None
            of_one = KvCache(cache.values, cache.scales[:, :1].expand_as(cache.scales).contiguous())
            return super().attend(qkv, of_one, queries, scale, window)

        def rotate_and_store(self, qkv: Tensor, rotation: tuple[Tensor, Tensor], slots: Tensor, cache: KvCache) -> None:
            assert cache.scales is not None
            super().rotate_and_store(qkv, rotation, slots, KvCache(cache.values, cache.scales.clone()))

    for kernels, kernel_names in ((Forgets(), ["rotate_and_store", "attend"]), (ReferenceKernels(), [])):
        findings = check_kernels(kernels, SHAPE, device=CPU, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype)
        assert [finding.kernel for finding in findings] == kernel_names


@pytest.mark.parametrize(
    ("faulty", "kernel"),
    [
        (Forgetful, "add_rms_norm"),
        (OffByOneHead, "attend"),
        (OffByOneKey, "attend"),
        (StoresPadding, "rotate_and_store"),
        (HeadsInWrongPlace, "rotate_and_store"),
        (NoNumber, "silu_product"),
        (ForgetsTheLastPage, "add_low_rank"),
        (ReadsWhatIsUndefined, "add_low_rank"),
        (DoesNotCompile, "silu_product"),
    ],
)
def test_a_faulty_kernel_is_replaced(faulty: Any, kernel: str, caplog: pytest.LogCaptureFixture) -> None:
    kernels = faulty()
    with caplog.at_level(logging.WARNING, logger="phi3_serve"):
        findings = check_kernels(kernels, SHAPE, device=CPU, dtype=torch.bfloat16)
    assert [finding.kernel for finding in findings] == [kernel]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert kernel in caplog.text
    mended = with_fallbacks(kernels, findings)
    assert found(mended) == {}
    for name in KERNELS:
        owner = getattr(mended, name).__self__
        assert (owner is kernels) == (name != kernel)


def test_the_problem_is_named() -> None:
    assert found(DoesNotCompile()) == {"silu_product": "RuntimeError: PassManager::run failed"}
    assert "differs from the reference by inf times" in found(NoNumber())["silu_product"]


def test_a_device_that_has_failed_is_no_finding() -> None:
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        found(BreaksTheDevice())


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_a_full_memory_is_no_finding(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow kernels for as long as the replica lives, because the memory was full for a moment."""

    def no_memory(*_: object) -> Tensor:
        raise error

    kernels = ReferenceKernels()
    monkeypatch.setattr(kernels, "silu_product", no_memory)
    with pytest.raises(type(error)) as caught:
        found(kernels)
    assert caught.value is error


def test_products_are_checked_in_each_form() -> None:
    """One row, tiles of each size, and so many rows that torch multiplies."""
    tiles = {
        min(MAX_TILE_ROWS, max(MIN_TILE, next_power_of_2(rows)))
        for rows in self_check.PACKED_ROWS
        if 1 < rows <= MAX_FEW_ROWS
    }
    assert tiles == {16, 32, 64}
    assert min(self_check.PACKED_ROWS) == 1
    assert max(self_check.PACKED_ROWS) > MAX_FEW_ROWS
