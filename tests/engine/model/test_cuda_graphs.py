"""``CudaGraphs`` in a runner on a CPU. A stand-in for torch's graphs fails in a first replay."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model import device_runner
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import CudaGraphs, DeviceRunner
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.sampling.device_sampler import TorchChooser
from tests.engine.adapters.drawing import drawn
from tests.engine.model import test_device_adapters, test_device_steps
from tests.engine.model.replayer import Replayer
from tests.engine.model.test_device_adapters import loaded as loaded_for_adapters  # noqa: F401 - a fixture
from tests.engine.model.test_device_steps import loaded  # noqa: F401 - a fixture

FAILED = torch.AcceleratorError("CUDA error: invalid argument")


class Gpu:
    """What ``CudaGraphs`` asks of torch.cuda; the first replay of the graphs whose numbers are in ``failing`` fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
        self.graphs: list[Gpu.Graph] = []
        self.pools: list[object] = []  # that captures were given
        self.failing = failing
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Gpu.Graph(self))
        monkeypatch.setattr(torch.cuda, "graph", self.capture)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    @contextmanager
    def capture(self, graph: "Gpu.Graph", *, pool: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self.pools.append(pool)
        graph.of_pool = graph.number if pool is None else pool
        yield

    class Graph:
        """One graph."""

        def __init__(self, gpu: "Gpu") -> None:
            self.number, self.gpu, self.num_replays = len(gpu.graphs), gpu, 0
            self.of_pool: object = None
            gpu.graphs.append(self)

        def replay(self) -> None:
            self.num_replays += 1
            if self.number in self.gpu.failing:
                raise FAILED

        def pool(self) -> object:
            return self.of_pool


def new_runner(model: LoadedModel, sizes: EngineSizes) -> DeviceRunner:
    kernels = ReferenceKernels()
    return DeviceRunner(Decoder(model.model, kernels), kernels, TorchChooser(), CudaGraphs(), sizes)


@pytest.mark.parametrize(
    ("failing", "num_prompts", "pools"), [(0, 1, [None, None, 1, 1, 1]), (1, 2, [None, 0, 0, 0, 0, 0])]
)
def test_prompts_do_without_graphs_whose_first_replay_fails(
    failing: int,
    num_prompts: int,
    pools: list[object],
    loaded: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fails while the model is loaded. No graph takes memory of the one that failed first."""
    monkeypatch.setattr(device_runner, "PROMPT_TOKENS", (20, 40))
    gpu = Gpu(monkeypatch, failing)
    sizes = test_device_steps.SIZES
    runner = new_runner(loaded, sizes)
    runner.capture_graphs()
    assert [graph.num_replays for graph in gpu.graphs] == [1] * (num_prompts + 4)
    assert gpu.pools == pools
    reason = "AcceleratorError: CUDA error: invalid argument"
    assert runner.replaced_kernels == {"prompt_graphs": reason}
    assert [record.levelname for record in caplog.records if reason in record.getMessage()] == ["WARNING"]
    on_host = ModelRunner(loaded.model, ReferenceKernels(), sizes)
    both = test_device_steps.Both(on_host, runner, Replayer(), list(range(1, sizes.num_blocks)))
    both.add(list(range(30)))
    both.run([(0, 29, 1)])


def test_adapters_do_without_graphs_whose_first_replay_fails(
    loaded_for_adapters: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It fails in the step of a request, which is answered all the same."""
    gpu = Gpu(monkeypatch, 0)
    sizes = test_device_adapters.sizes_of(loaded_for_adapters)
    runner = new_runner(loaded_for_adapters, sizes)
    on_host = ModelRunner(loaded_for_adapters.model, ReferenceKernels(), sizes)
    both = test_device_adapters.Both(on_host, runner, Replayer())
    both.add(4, drawn(loaded_for_adapters.model.config, 2, 1))
    both.run((0, 3, 0))
    for _ in range(2):
        both.run((0, 1, 1))
    assert len(gpu.graphs) == 1
    assert runner.replaced_kernels == {"adapter_graphs": "AcceleratorError: CUDA error: invalid argument"}
