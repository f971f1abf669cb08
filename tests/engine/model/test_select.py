"""The runner that a model on a GPU gets, made on a CPU with Triton's interpreter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.engine.engine_core import EngineCore
from phi3_serve.engine.kernels import prompt_attention, triton_layers, triton_linear, triton_low_rank, triton_sampling
from phi3_serve.engine.kernels.contract import KERNELS
from phi3_serve.engine.kernels.cuda import ChunkSize, CudaKernels
from phi3_serve.engine.kernels.prompt_attention import Trial
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kernels.self_check import Finding
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes, FittingSizes, GpuMemory, block_bytes
from phi3_serve.engine.model import decoder, select
from phi3_serve.engine.model.device_runner import DeviceRunner
from phi3_serve.engine.model.linear import Streamed

SIZES = EngineSizes(num_blocks=20, token_budget=32, max_rows=2, prefix_cache=False)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is captured as a CUDA graph."""
    runs: list[Any] = []

    def capture(run: Any) -> Any:
        runs.append(run)
        return run

    monkeypatch.setattr(select, "CudaGraphs", lambda: capture)
    monkeypatch.setattr(DeviceRunner, "warm_up", lambda _: runs.append("warm-up"))  # takes seconds in the interpreter
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4, major=9)
    )
    return runs


def owners(loaded: LoadedModel) -> dict[str, type]:
    runner = select._cuda_runner(loaded.model, SIZES, torch.float32, releases_weights=False)
    return {name: type(getattr(runner.kernels, name).__self__) for name in KERNELS}


def test_right_kernels_are_captured(loaded: LoadedModel, captured: list[Any]) -> None:
    assert set(owners(loaded).values()) == {CudaKernels}
    assert len(captured) == 3  # for two rows and for one
    assert captured[-1] == "warm-up"


def test_a_faulty_kernel_is_replaced_and_nothing_is_captured(
    loaded: LoadedModel, captured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(gate_up: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(triton_layers, "silu_product", fails)
    of = owners(loaded)
    assert of.pop("silu_product") is ReferenceKernels
    assert set(of.values()) == {CudaKernels}
    assert captured == ["warm-up"]


def test_a_faulty_kernel_of_adapters_leaves_the_graphs_of_other_steps(
    loaded: LoadedModel, captured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(triton_low_rank, "add_low_rank", fails)
    of = owners(loaded)
    assert of.pop("add_low_rank") is ReferenceKernels
    assert set(of.values()) == {CudaKernels}
    assert len(captured) == 3


def fails(*arguments: object) -> None:
    raise RuntimeError("out of resource: shared memory")


@pytest.mark.parametrize(
    ("given", "graphs", "flash"),
    [({}, True, True), ({"cuda_graphs": False}, False, True), ({"flash_attention": False}, True, False)],
)
def test_what_is_turned_off_is_neither_captured_nor_tried(
    given: dict[str, bool],
    graphs: bool,
    flash: bool,
    loaded: LoadedModel,
    captured: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = select._cuda_runner
    monkeypatch.setattr(select, "_cuda_runner", lambda _, *others, **more: make(loaded.model, *others, **more))
    monkeypatch.setattr(select, "check_kernels", lambda *_, **__: [])
    monkeypatch.setattr(prompt_attention, "sizes_to_gather", lambda *_, **__: Trial({ChunkSize(9, 9): True}))
    on_gpu = SimpleNamespace(device=SimpleNamespace(type="cuda"), dtype=torch.float32)
    runner = select.new_runner(on_gpu, SIZES, **given)
    assert (runner.cuda_graphs, runner.flash_attention) == (graphs, "from 9 tokens over 9 keys" if flash else "")
    assert len(captured) == (3 if graphs else 1)  # for two rows and for one, and the warm-up
    assert runner.replaced_kernels == {}


def test_the_largest_step_is_measured_for_fitting_sizes(
    loaded: LoadedModel, captured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Any, ...]] = []

    def measure(make: Any, *given: Any) -> GpuMemory:
        measured.append(given)
        return GpuMemory(total=10**9, free=10**9, step=0, graphs=0)

    monkeypatch.setattr(select, "check_kernels", lambda *_, **__: [])
    monkeypatch.setattr(prompt_attention, "sizes_to_gather", lambda *_, **__: Trial({}))
    monkeypatch.setattr(select, "measure_largest_step", measure)
    wanted = FittingSizes(max_blocks=150, kv_cache_dtype="int8")
    runner = select._cuda_runner(loaded.model, wanted, torch.float32, releases_weights=False)
    assert measured == [(block_bytes(loaded.model.config, torch.float32, "int8"), wanted, 2048)]
    assert (runner.sizes.num_blocks, runner.sizes.token_budget, runner.sizes.kv_cache_dtype) == (150, 2048, "int8")


@pytest.mark.parametrize("has_fault", [False, True])
def test_a_trial_of_attention_that_fails_is_told(
    has_fault: bool, loaded: LoadedModel, captured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside kernels that the reference replaces, too. The other kernels and the graphs are as without it."""
    findings = [Finding("add_low_rank", "too slow")] if has_fault else []
    monkeypatch.setattr(select, "check_kernels", lambda *_, **__: findings)
    monkeypatch.setattr(prompt_attention, "sizes_to_gather", lambda *_, **__: Trial({}, "it is wrong"))
    monkeypatch.setattr(DeviceRunner, "capture_graphs", lambda _: captured.append("graphs"))
    runner = select._cuda_runner(loaded.model, SIZES, torch.float32, releases_weights=False)
    others = {"add_low_rank": "too slow"} if has_fault else {}
    assert runner.replaced_kernels == {"flash_attention": "it is wrong", **others}
    assert captured == ["graphs", "warm-up"]


@pytest.mark.thorough
def test_the_engine_says_which_kernels_are_replaced(
    loaded: LoadedModel, captured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each kind: of the layers, of the linear layers and of the sampler."""

    def info() -> EngineInfo:
        return EngineCore(loaded, SIZES, make_runner=make_runner).info

    def make_runner(model: Any, sizes: select.Sizes, *, releases_weights: bool = False) -> select.Runner:
        return select._cuda_runner(model, sizes, torch.float32, releases_weights=releases_weights)

    right = info()
    assert (right.kernels, right.replaced_kernels, right.cache_tokens) == ("cuda", {}, 320)
    monkeypatch.setattr(triton_layers, "silu_product", fails)
    monkeypatch.setattr(decoder, "fastest_form", lambda *_: Streamed())
    monkeypatch.setattr(triton_linear, "row_config", lambda *_: object())
    monkeypatch.setattr(triton_linear, "multiply_row", fails)
    monkeypatch.setattr(triton_sampling, "choose_tokens", fails)
    monkeypatch.setattr(DeviceRunner, "warm_up", lambda runner: runner.sampler.prepare(torch.zeros(2, 704)))
    found = dict(info().replaced_kernels)
    reason = "RuntimeError: out of resource: shared memory"
    of_sizes = found.pop("multiply_row")
    assert found == {"silu_product": reason, "choose_tokens": reason}
    sizes = [layer.weight.shape for layer in loaded.model.modules() if isinstance(layer, nn.Linear)]
    assert set(of_sizes.split("; ")) == {f"{list(size)}: {reason}" for size in sizes}
