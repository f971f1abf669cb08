"""What the machine allows, measured in the same run as what is compared with it."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from phi3_serve.engine.engine import StepStats
from phi3_serve.engine.linear import compute_dtype, packed, plain

COPIED = 1 << 28  # bytes
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates."""

    bytes_per_s: float  # read and written by a copy
    flops_per_s: float  # of the largest matrix multiplication tried


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Copy a quarter of a gigabyte; multiply 2048 rows (8192 on a GPU)."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    copy_s = best_seconds(lambda: target.copy_(source), device)
    multiply_s = best_seconds(lambda: a @ b, device)
    return Machine(2 * COPIED / copy_s, 2 * size**3 / multiply_s)


def best_seconds(act: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """The shortest of several runs of ``act``, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        _wait(device)
        began = time.perf_counter()
        act()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class LinearLayers:
    """All linear layers of a model and nothing else, each in the form that is fastest: what no engine can undercut."""

    def __init__(self, model: Any) -> None:
        dtype = compute_dtype(model.dtype, model.device)
        self._device = model.device
        self._dtype = dtype
        self._seconds: dict[int, float] = {}
        modules = [m for m in model.modules() if isinstance(m, nn.Linear)]
        forms = (plain, packed) if model.device.type == "cpu" else (plain,)
        with torch.inference_mode():
            self._layers = [
                (m.weight.shape[1], tuple(form(m.weight.detach().to(dtype)) for form in forms), m is model.lm_head)
                for m in modules
            ]

    @torch.inference_mode()
    def seconds(self, num_tokens: int) -> float:
        """One pass over ``num_tokens`` rows."""
        if num_tokens not in self._seconds:
            inputs = {
                width: torch.randn(num_tokens, width).to(self._device, self._dtype) for width, _, _ in self._layers
            }
            numbers = range(len(self._layers[0][1]))
            self._seconds[num_tokens] = min(
                best_seconds(
                    lambda number=number: [forms[number](inputs[width]) for width, forms, _ in self._layers],  # type: ignore[misc]
                    self._device,
                    rounds=2,
                )
                for number in numbers
            )
        return self._seconds[num_tokens]

    def seconds_of(self, steps: Iterable[StepStats]) -> float:
        """What the linear layers alone take for these steps."""
        counts = Counter(_rounded(step.num_tokens) for step in steps if step.num_tokens)
        return sum(count * self.seconds(num_tokens) for num_tokens, count in counts.items())


def _rounded(num_tokens: int) -> int:
    """Few enough different sizes to measure each: exact to 32, then in steps of 16."""
    return num_tokens if num_tokens <= 32 else -(-num_tokens // 16) * 16


def roofline_seconds(steps: Iterable[StepStats], config: Any, machine: Machine, dtype: torch.dtype) -> float:
    """The least these steps can take: bytes over bandwidth or operations over the matmul rate, whichever is more.

    ``t = max((W + keys * kv) / BW, (2 * N * tokens + 4 * L * H * d * keys) / F)``, summed over the steps.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    per_layer = config.hidden_size * head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    weights = config.num_hidden_layers * (per_layer + 3 * config.hidden_size * config.intermediate_size)
    weights += config.vocab_size * config.hidden_size
    kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * dtype.itemsize
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim
    seconds: float = sum(
        max(
            (weights * dtype.itemsize + step.num_keys * kv_bytes) / machine.bytes_per_s,
            (2 * weights * step.num_tokens + attention * step.num_keys) / machine.flops_per_s,
        )
        for step in steps
        if step.num_tokens
    )
    return seconds
