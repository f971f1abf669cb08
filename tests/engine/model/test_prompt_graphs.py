"""Graphs of prompts that run alone, against the runner of a CPU: the steps of ``test_device_steps`` with a larger budget."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.kernels.contract import DeviceKernels
from phi3_serve.engine.kernels.cuda import CudaKernels
from phi3_serve.engine.kernels.kv_cache import KvCache
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.model import device_runner
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner, Replay, without_graphs
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.sampling.device_sampler import TorchChooser
from tests.engine.model.replayer import Replayer
from tests.engine.model.test_device_steps import SIZES, Both, loaded  # noqa: F401 - a fixture


@pytest.fixture(params=["reference", pytest.param("triton", marks=pytest.mark.slow)])
def both(
    request: pytest.FixtureRequest,
    loaded: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Both:
    """With graphs of 20 and of 40 tokens, which are two and three tiles."""
    monkeypatch.setattr(device_runner, "PROMPT_TOKENS", (20, 40, 100))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=1, major=9)
    )
    graphs = Replayer()
    kernels: DeviceKernels = ReferenceKernels()
    if request.param == "triton":
        kernels = CudaKernels(num_heads=4, num_kv_heads=2, dtype=torch.float32, device=torch.device("cpu"))
    both = Both(
        ModelRunner(loaded.model, ReferenceKernels(), SIZES),
        DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), graphs, SIZES),
        graphs,
        Random(2).sample(range(1, SIZES.num_blocks), SIZES.num_blocks - 1),
    )
    draw = Random(1)
    for length in (90, 30, 9):
        # Block 0, in which misplaced keys of padding would lie, has keys that the first sequence sees.
        blocks = [both.free.pop(), 0] if not both.sequences else []
        both.add([0, *(draw.randrange(704) for _ in range(length - 1))], first_blocks=blocks)
    both.on_device.capture_graphs()
    return both


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_a_prompt_in_chunks(both: Both) -> None:
    """Also beyond the window, beyond the crossing, and with keys of another chunk in the padding of the buffer."""
    captures = both.graphs.num_captures
    assert captures == 4 + 2  # decode steps of 1, 2, 4 and 8 rows; no graph is larger than the budget
    for count, logits in ((33, 1), (20, 0), (21, 1), (9, 1)):
        both.run([(0, count, logits)])
    assert both.graphs.num_replays == 4
    both.run([(1, 28, 1)])
    both.run([(1, 1, 0)])  # not decoded, because nobody wants its logits
    both.run([(2, 3, 0)])
    assert both.graphs.num_replays == 7
    both.run([(2, 5, 1)])
    both.run([(2, 1, 1), (1, 1, 1)])  # decoded
    assert (both.graphs.num_captures, both.graphs.num_replays) == (captures, 9)


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_what_is_no_prompt_alone_has_no_graph(both: Both) -> None:
    both.run([(0, 20, 0), (1, 11, 1)])
    both.run([(0, 19, 4)])  # as in a step that scores a prompt
    both.run([(0, 41, 0)])  # longer than the longest graph
    for _, device in both.sequences[1:2]:
        assert device.num_pending == 19
    both.run([(1, 3, 3)])
    assert both.graphs.num_replays == 0


@pytest.mark.parametrize("both", ["reference"], indirect=True)
def test_keys_that_are_gathered_are_in_no_graph(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(both.on_device.kernels, "gathers", lambda num_queries, num_keys: num_keys >= 30)
    gathered: list[int] = []
    attend = ReferenceKernels.attend

    def watched(self: ReferenceKernels, qkv: torch.Tensor, cache: KvCache, queries: object, *others: object) -> object:
        gathered.append(len(queries.gathered))  # type: ignore[attr-defined]
        return attend(self, qkv, cache, queries, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(ReferenceKernels, "attend", watched)
    both.run([(0, 20, 0)])
    assert (both.graphs.num_replays, set(gathered)) == (1, {0})
    both.run([(0, 20, 0)])
    assert (both.graphs.num_replays, gathered[-1]) == (1, 1)


class Failing(Replayer):
    """It captures ``most`` graphs; then the next one fails."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        if self.num_captures == self.most:
            self.most = -1  # the others succeed
            raise self.error
        return super().__call__(run)


ERRORS = [
    torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing\nMore."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
]


@pytest.mark.parametrize("error", ERRORS, ids=["capture", "memory"])
@pytest.mark.parametrize("most", [0, 1])
def test_prompts_do_without_graphs_that_fail(
    most: int,
    error: Exception,
    loaded: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Graphs of 40 and of 20 tokens are captured first. Decode steps have theirs."""
    monkeypatch.setattr(device_runner, "PROMPT_TOKENS", (20, 40))
    asked: list[DeviceRunner] = []
    monkeypatch.setattr(DeviceRunner, "check_device", lambda runner: asked.append(runner))
    graphs, kernels = Failing(most, error), ReferenceKernels()
    runner = DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), graphs, SIZES)
    runner.capture_graphs()
    assert (graphs.num_captures, len(asked)) == (most + 4, 1)
    reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    assert runner.replaced_kernels == {"prompt_graphs": reason}
    assert [record.levelname for record in caplog.records if reason in record.getMessage()] == ["WARNING"]
    both = Both(ModelRunner(loaded.model, ReferenceKernels(), SIZES), runner, graphs, list(range(1, SIZES.num_blocks)))
    both.add(list(range(30)))
    both.run([(0, 29, 1)])
    assert graphs.num_replays == 0
    both.run([(0, 1, 1)])
    assert graphs.num_replays == 1


def test_no_step_has_a_graph_if_that_of_a_decode_step_fails(
    loaded: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(device_runner, "PROMPT_TOKENS", (20, 40))
    graphs, kernels = Failing(2, ERRORS[0]), ReferenceKernels()
    runner = DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), graphs, SIZES)
    assert runner.cuda_graphs
    runner.capture_graphs()
    reason = "AcceleratorError: CUDA error: operation not permitted when stream is capturing"
    assert (graphs.num_captures, runner.replaced_kernels, runner.cuda_graphs) == (2, {"decode_graphs": reason}, False)
    assert [record.levelname for record in caplog.records if reason in record.getMessage()] == ["WARNING"]
    both = Both(ModelRunner(loaded.model, ReferenceKernels(), SIZES), runner, graphs, list(range(1, SIZES.num_blocks)))
    both.add(list(range(30)))
    both.run([(0, 29, 1)])
    both.run([(0, 1, 1)])
    assert graphs.num_replays == 0


def test_a_decode_step_without_memory_for_its_graph_fails(
    loaded: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``sizes_on_gpu`` then tries a smaller engine."""
    monkeypatch.setattr(device_runner, "PROMPT_TOKENS", ())
    kernels = ReferenceKernels()
    runner = DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), Failing(0, ERRORS[1]), SIZES)
    with pytest.raises(torch.OutOfMemoryError):
        runner.capture_graphs()


def test_a_device_that_has_failed_ends_the_load(
    loaded: LoadedModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(_: DeviceRunner) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device_runner, "PROMPT_TOKENS", (40,))
    monkeypatch.setattr(DeviceRunner, "check_device", ask)
    kernels = ReferenceKernels()
    runner = DeviceRunner(
        Decoder(loaded.model, kernels), kernels, TorchChooser(), Failing(0, RuntimeError("Triton Error [CUDA]")), SIZES
    )
    with pytest.raises(torch.AcceleratorError):
        runner.capture_graphs()


def test_kernels_without_graphs_pad_no_prompt(loaded: LoadedModel) -> None:  # noqa: F811
    kernels = ReferenceKernels()
    sizes = replace(SIZES, token_budget=1000)
    runner = DeviceRunner(Decoder(loaded.model, kernels), kernels, TorchChooser(), without_graphs, sizes)
    assert runner._prompt_shapes == []
