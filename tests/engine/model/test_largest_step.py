"""The largest step of a GPU's runner, run and measured on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.device import CUDA_BYTES
from phi3_serve.engine.kernels import flash_attention
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes, FittingSizes, GpuMemory
from phi3_serve.engine.model import largest_step
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner, Replay
from phi3_serve.engine.model.largest_step import measure_largest_step, run_largest_step
from phi3_serve.engine.sampling.device_sampler import TorchChooser
from phi3_serve.engine.sampling.drawing import draw
from phi3_serve.engine.sampling.warpers import _WARPERS
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY

SIZES = EngineSizes(num_blocks=1, token_budget=40, max_rows=8)


@pytest.fixture
def runner(loaded: LoadedModel) -> DeviceRunner:
    return runner_of(loaded, SIZES)


def runner_of(
    loaded: LoadedModel, sizes: EngineSizes, capture: Callable[[Callable[[], Tensor]], Replay] = lambda run: run
) -> DeviceRunner:
    kernels = ReferenceKernels()
    return DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), capture, sizes)


def test_it_runs_the_whole_budget_and_draws_all_rows(runner: DeviceRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[int, ...]] = {}
    run = runner.decoder.run

    def watched_run(inputs: Any, cache: KvCache) -> Tensor:
        logits = run(inputs, cache)
        seen["tokens"], seen["logits"] = tuple(inputs.token_ids.shape), tuple(logits.shape)
        return logits

    def watched_draw(scores: Tensor, settings: Any) -> list[int]:
        seen["drawn"] = tuple(scores.shape)
        seen["warpers"] = (sum(warper.is_requested(settings[0].parameters) for warper in _WARPERS),)
        return draw(scores, settings)

    monkeypatch.setattr(runner.decoder, "run", watched_run)
    monkeypatch.setattr(largest_step, "draw", watched_draw)
    run_largest_step(runner, SIZES, max_cached=10_000)
    assert seen == {
        "tokens": (40,),
        "logits": (40, 704),
        "drawn": (8, 704),
        "warpers": (len(_WARPERS) - 2,),  # all but top_k and top_h, which need less
    }


@pytest.mark.parametrize(
    ("most_keys", "cached", "window", "sizes", "gathered"),
    [
        (90, 10_000, None, {(9, 40): True}, {(40, 90)}),
        (10_000, 10_000, None, {(9, 40): True}, {(40, 2048)}),
        (30, 10_000, None, {(9, 40): True}, set()),
        (90, 10_000, None, {(9, 40): True, (30, 40): False}, {(24, 90)}),
        (700, 10_000, None, {(9, 40): True, (9, 450): False}, {(40, 444)}),  # 700 - 2 * 128
        (10_000, 96, None, {(9, 40): True}, {(40, 96)}),
        (10_000, 96, 60, {(9, 40): True}, {(40, 2048)}),
    ],
)
def test_as_many_keys_as_ever_are_gathered(
    runner: DeviceRunner,
    most_keys: int,
    cached: int,
    window: int | None,
    sizes: dict[tuple[int, int], bool],
    gathered: set[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for those beyond the context and the cache. The cache holds longer sequences than itself behind a window.

    All tokens of the budget are run, also if a smaller chunk is gathered.
    """
    config = runner.decoder.config
    of_key = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads * 4
    monkeypatch.setattr(flash_attention, "MAX_GATHERED_BYTES", most_keys * of_key)
    monkeypatch.setattr(config, "sliding_window", window)

    def gathers(num_queries: int, num_keys: int) -> bool:
        has = [size for size in sizes if size[0] <= num_queries and size[1] <= num_keys]
        return bool(has) and sizes[max(has)]

    monkeypatch.setattr(runner.kernels, "gathers", gathers)
    seen: set[tuple[int, int]] = set()
    attend = ReferenceKernels.attend

    def watched(self: ReferenceKernels, qkv: Tensor, cache: KvCache, queries: Any, *others: Any) -> Tensor:
        assert len(qkv) == 40
        seen.update((chunk.num_queries, chunk.end) for chunk in queries.gathered if chunk.end > 40)
        return attend(self, qkv, cache, queries, *others)

    monkeypatch.setattr(ReferenceKernels, "attend", watched)
    run_largest_step(runner, SIZES, cached)
    assert seen == gathered


class Gpu:
    """The counters of torch.cuda over the runners of the tests: graphs keep 7 bytes each, a step takes 1,000.

    The load has left 300 bytes with torch, which nothing uses.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, *, error: Exception | None = None) -> None:
        self.free, self.reserved, self.peak, self.unused = 10_000, 500, 99_999, 300
        self.calls: list[str] = []
        self._loaded, self._error = loaded, error
        for name in (
            "mem_get_info",
            "empty_cache",
            "memory_allocated",
            "memory_reserved",
            "max_memory_reserved",
            "reset_peak_memory_stats",
        ):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(largest_step, "run_largest_step", self.run_step)

    def make_runner(self, sizes: EngineSizes) -> DeviceRunner:
        self.sizes = sizes
        return runner_of(self._loaded, EngineSizes(1, 16, 4), self.capture)

    def capture(self, run: Callable[[], Tensor]) -> Replay:
        self.free -= 7
        return run

    def run_step(self, runner: DeviceRunner, sizes: EngineSizes, max_cached: int) -> None:
        self.calls.append("step")
        self.max_cached = max_cached
        if self._error is not None:
            raise self._error
        self.peak = max(self.peak, self.reserved + 1000)

    def mem_get_info(self) -> tuple[int, int]:
        return self.free, 20_000

    def empty_cache(self) -> None:
        self.calls.append("empty")
        self.free, self.reserved, self.unused = self.free + self.unused, self.reserved - self.unused, 0

    def memory_allocated(self) -> int:
        return 150

    def memory_reserved(self) -> int:
        return self.reserved

    def max_memory_reserved(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.reserved


def test_graphs_and_the_step_are_measured(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, loaded)
    memory = measure_largest_step(gpu.make_runner, 100, FittingSizes(), 2048)
    assert (gpu.reserved, gpu.unused) == (200, 0)
    own = gpu.reserved + CUDA_BYTES
    assert memory == GpuMemory(total=20_000, free=gpu.free, step=1000, graphs=3 * 7, own=own)  # for 1, 2 and 4 rows
    assert gpu.sizes == EngineSizes(num_blocks=1, token_budget=2048, max_rows=256)
    assert gpu.calls == ["empty", "empty", "step", "empty"]


@pytest.mark.parametrize(
    ("wanted", "max_cached"),
    [
        (FittingSizes(), 198 * 16),  # (20,000 - 150) / 100
        (FittingSizes(gpu_share=0.25), 48 * 16),
        (FittingSizes(max_blocks=7), 7 * 16),
        (FittingSizes(gpu_share=0.001), 0),
    ],
)
def test_the_cache_holds_at_most_what_the_weights_leave(
    wanted: FittingSizes, max_cached: int, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu(monkeypatch, loaded)
    measure_largest_step(gpu.make_runner, 100, wanted, 2048)
    assert gpu.max_cached == max_cached


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_a_step_without_memory_is_no_measurement(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    gpu = Gpu(monkeypatch, loaded, error=error)
    assert measure_largest_step(gpu.make_runner, 100, FittingSizes(), 2048) is None
    assert gpu.calls[-1] == "empty"


def test_another_error_is_no_lack_of_memory(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch, loaded, error=RuntimeError("PassManager::run failed"))
    with pytest.raises(RuntimeError, match="PassManager::run failed"):
        measure_largest_step(gpu.make_runner, 100, FittingSizes(), 2048)
