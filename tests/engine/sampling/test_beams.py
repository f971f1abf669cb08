"""What beam strategies do that a comparison with transformers on a CPU cannot show."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from phi3_serve.engine.sampling.stopping import StoppingCriteria
from phi3_serve.engine.sampling.strategies.beams import BeamStrategy
from phi3_serve.engine.sampling.strategies.select import strategy_for
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve


class Draws(TorchFunctionMode):
    """Notes for each multinomial draw whether its probabilities were brought to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.were_on_cpu: list[bool] = []
        self._brought: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is Tensor.cpu:
            self._brought.append(result)
        if function is torch.multinomial:
            self.were_on_cpu.append(any(args[0] is tensor for tensor in self._brought))
        return result


def test_beams_are_drawn_on_the_cpu() -> None:
    """There is the generator of a seed; torch refuses to draw on a GPU with it."""
    parameters = resolve(GenerationParameters(do_sample=True, num_beams=3, seed=5, eos_token_id=1))
    request = prepare("r", [3, 4], parameters, context_length=100, timeout_s=9)
    strategy = strategy_for(request, StoppingCriteria(request, {}), None)
    assert isinstance(strategy, BeamStrategy)
    with Draws() as draws:
        candidates = strategy._drawn_candidates(torch.randn(3, 50), [0.0, 0.0, 0.0])
    assert draws.were_on_cpu == [True]
    assert len(candidates) == 6
