"""The runner of a GPU on a CPU: the same code, with the reference kernels and without CUDA graphs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner, Replay
from phi3_serve.engine.model.select import Sizes
from phi3_serve.engine.model.step_buffer import StepIntegers
from phi3_serve.engine.sampling.device_sampler import TorchChooser


class Replayer:
    """``Capture`` that runs the function again, as a CUDA graph does: over the same memory, into the same memory.

    A graph repeats the addresses and shapes that it was captured with. So the inputs that the function holds must be
    the captured ones, and whatever the host decides while it runs is decided once, when it is captured. The graphs of a
    runner share their memory, so a result is lost when another graph is replayed.
    """

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0
        self._results: list[Tensor] = []

    def __call__(self, run: Callable[[], Tensor]) -> Replay:
        self.num_captures += 1
        inputs = _integers(run)
        result = run().clone()
        self._results.append(result)
        addresses = [(part.data_ptr(), part.shape, part.stride()) for part in _tensors(inputs)]

        def replay() -> Tensor:
            self.num_replays += 1
            assert [(part.data_ptr(), part.shape, part.stride()) for part in _tensors(inputs)] == addresses
            again = run()
            assert (again.shape, again.dtype) == (result.shape, result.dtype)
            for other in self._results:
                other.fill_(torch.nan)
            return result.copy_(again)

        return replay


def _integers(run: Callable[[], Tensor]) -> StepIntegers:
    (inputs,) = [cell.cell_contents for cell in run.__closure__ or () if isinstance(cell.cell_contents, StepIntegers)]
    return inputs


def _tensors(integers: StepIntegers) -> list[Tensor]:
    queries = integers.queries
    of_tokens = [integers.token_ids, integers.positions, integers.uses_long_factors, integers.slots]
    adapted = integers.adapted
    of_adapters = [] if adapted is None else [adapted.rows, adapted.num_tiles, adapted.tiles, adapted.pages]
    return [*of_tokens, queries.sequences, queries.block_tables, queries.short_tiles, queries.long_tiles, *of_adapters]


def runner_on_cpu(
    model: Any, sizes: Sizes, *, releases_weights: bool = False, capture: Replayer | None = None
) -> DeviceRunner:
    """``RunnerFactory``."""
    assert model.device == torch.device("cpu")
    assert isinstance(sizes, EngineSizes)
    kernels = ReferenceKernels()
    decoder = Decoder(model, kernels, releases_weights=releases_weights)
    return DeviceRunner(decoder, kernels, TorchChooser(), capture or Replayer(), sizes)
