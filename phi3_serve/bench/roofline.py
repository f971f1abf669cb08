"""The limits of the machine, measured in the same run as the competitors."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from phi3_serve.bench.shapes import Model, config
from phi3_serve.catalogue import FP8, NO_QUANTIZATION
from phi3_serve.engine.engine_core import StepStats
from phi3_serve.engine.kernels.contract import Bits, quantized_bytes
from phi3_serve.engine.kernels.half_panels import PARTS, HalfPanels, keeps_dtype
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype, bytes_of_head
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.model.linear import FORMS, Linear, plain
from phi3_serve.engine.quantization import BITS, OF_EMBEDDING, pack, round_weight

COPIED = 1 << 28  # bytes
ROUNDS = 3
SAMPLED = 1 << 29  # bytes of linear layers that are timed, more than a processor's caches hold


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured rates."""

    bytes_per_s: float  # read and written by a copy, or only read, whichever is more
    flops_per_s: float  # of a large matrix multiplication
    threads: int  # of torch


def measure_machine(
    device: torch.device, dtype: torch.dtype, quantization: str = NO_QUANTIZATION, weights: torch.dtype | None = None
) -> Machine:
    """Copy and read a quarter of a gigabyte; multiply 2048 rows (8192 on a GPU), with fp8 in float8.

    With ``weights`` in bfloat16 under activations in float32, the rate is that of three products in bfloat16 if that is
    more, because a float is the sum of three such numbers.
    """
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    copy_s = best_seconds(lambda: target.copy_(source), device)
    read_s = best_seconds(source.sum, device)
    multiply: Callable[[], object] = partial(torch.matmul, a, b)
    if quantization == FP8:
        ones = torch.ones(size, 1, device=device)
        in_fp8 = [matrix.to(torch.float8_e4m3fn) for matrix in (a, b)]
        multiply = partial(torch._scaled_mm, in_fp8[0], in_fp8[1].T, ones, ones.T, out_dtype=dtype)
    multiply_s = best_seconds(multiply, device)
    if weights == torch.bfloat16 and dtype == torch.float32:
        halves = a.bfloat16(), b.bfloat16()
        multiply_s = min(multiply_s, PARTS * best_seconds(partial(torch.matmul, *halves), device))
    return Machine(max(2 * COPIED / copy_s, COPIED / read_s), 2 * size**3 / multiply_s, torch.get_num_threads())


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


class Limits:
    """Measurements of a machine, and of a model's linear layers alone, in a process of its own."""

    def __init__(self, model: Model) -> None:
        self._device = torch.device(model.device)
        self._dtype = model.compute_dtype
        self._weights = weight_dtype(model)
        self._config = config(model.shape)
        self._quantization = model.quantization

    def machine(self) -> Machine:
        """The machine's rates."""
        return measure_machine(self._device, self._dtype, weights=self._weights)

    @torch.inference_mode()
    def linear_seconds(self, token_counts: Sequence[int]) -> dict[int, float]:
        """Seconds of one pass through all linear layers and nothing else, by number of tokens, in the fastest form.

        No engine can undercut this. So many decoder layers are timed that they come from memory.
        """
        if self._quantization != NO_QUANTIZATION:
            return self._of_form(self._packed, token_counts)
        times = []
        forms: list[Callable[[Tensor], Linear]] = [*FORMS] if self._device.type == "cpu" else [plain]
        if self._weights != self._dtype:
            forms = [lambda weight: HalfPanels(weight.to(self._weights))]
        for form in forms:
            with suppress(RuntimeError):  # this machine does not have the form
                times.append(self._of_form(form, token_counts))
        return {count: min(of_form[count] for of_form in times) for count in token_counts}

    def _of_form(self, form: Callable[[Tensor], Linear], token_counts: Sequence[int]) -> dict[int, float]:
        *of_layers, head = linear_sizes(self._config)
        of_layer = of_layers[: len(of_layers) // self._config.num_hidden_layers]
        bytes_of_layers = weight_bytes(self._config, self._weights, self._quantization, of_layers)
        sampled = min(1.0, SAMPLED / bytes_of_layers)
        count = math.ceil(sampled * self._config.num_hidden_layers)
        seconds = self._seconds(form, of_layer * count, token_counts)
        of_head = self._seconds(form, [head], token_counts)
        return {n: seconds[n] * self._config.num_hidden_layers / count + of_head[n] for n in token_counts}

    def _seconds(
        self, form: Callable[[Tensor], Linear], sizes: Sequence[tuple[int, int]], token_counts: Sequence[int]
    ) -> dict[int, float]:
        layers = [(inputs, form(self._weight(outputs, inputs))) for outputs, inputs in sizes]
        seconds = {}
        for count in token_counts:
            x = {inputs: torch.randn(count, inputs).to(self._device, self._dtype) for inputs, _ in layers}
            seconds[count] = best_seconds(
                lambda x=x: [layer(x[inputs]) for inputs, layer in layers],  # type: ignore[misc]
                self._device,
            )
        return seconds

    def _packed(self, weight: Tensor) -> Linear:
        quantization = OF_EMBEDDING if len(weight) == self._config.vocab_size else self._quantization
        rounded = round_weight(weight, quantization, self._device)
        return pack(select_weight_kernels(self._device), rounded).multiply

    def _weight(self, outputs: int, inputs: int) -> Tensor:
        return torch.randn(outputs, inputs, device=self._device).to(self._dtype)


def linear_sizes(config: Any) -> list[tuple[int, int]]:
    """(outputs, inputs) of every linear layer of a Phi-3 model, in the order they run."""
    head_dim = config.hidden_size // config.num_attention_heads
    of_layer = [
        (head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads), config.hidden_size),
        (config.hidden_size, head_dim * config.num_attention_heads),
        (2 * config.intermediate_size, config.hidden_size),
        (config.hidden_size, config.intermediate_size),
    ]
    return [*of_layer * config.num_hidden_layers, (config.vocab_size, config.hidden_size)]


def bits_of(quantization: str, outputs: int, config: Any) -> Bits:
    """Bits of a weight of the linear layer with ``outputs`` outputs; the head has as many as the vocabulary."""
    return BITS[OF_EMBEDDING if outputs == config.vocab_size else quantization]


def weight_dtype(model: Model) -> torch.dtype:
    """The dtype in which a step reads the weights of ``model`` that are not rounded."""
    is_kept = model.device == "cpu" and keeps_dtype(model.dtype, model.compute_dtype)
    return model.dtype if is_kept else model.compute_dtype


def weight_bytes(
    config: Any, dtype: torch.dtype, quantization: str, sizes: Sequence[tuple[int, int]] | None = None
) -> int:
    """Bytes of the weights that a step reads; of the linear layers with ``sizes`` if these are given."""
    sizes = linear_sizes(config) if sizes is None else sizes
    if quantization == NO_QUANTIZATION:
        return sum(outputs * inputs for outputs, inputs in sizes) * dtype.itemsize
    return sum(quantized_bytes(outputs, inputs, bits_of(quantization, outputs, config)) for outputs, inputs in sizes)


def by_size(steps: Iterable[StepStats]) -> Counter[int]:
    """The number of steps of each size. Sizes above 32 tokens are rounded to multiples of 16."""
    return Counter(n if (n := step.num_tokens) <= 32 else -(-n // 16) * 16 for step in steps if step.num_tokens)


def roofline_seconds(
    steps: Iterable[StepStats],
    config: Any,
    machine: Machine,
    dtype: torch.dtype,
    quantization: str = NO_QUANTIZATION,
    kv_cache_dtype: KvCacheDtype = "auto",
    weights: torch.dtype | None = None,
) -> float:
    """The lower bound of the time of ``steps``: bytes / bandwidth or operations / matmul rate, whichever is larger.

    ``t = max((W + keys * kv) / BW, (2 * N * tokens + 4 * L * H * d * keys) / F)``, summed over the steps.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    num_weights = sum(outputs * inputs for outputs, inputs in linear_sizes(config))
    bytes_of_weights = weight_bytes(config, weights or dtype, quantization)
    of_head = bytes_of_head(head_dim, dtype, kv_cache_dtype)
    kv_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * of_head
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim
    seconds: float = sum(
        max(
            (bytes_of_weights + step.num_keys * kv_bytes) / machine.bytes_per_s,
            (2 * num_weights * step.num_tokens + attention * step.num_keys) / machine.flops_per_s,
        )
        for step in steps
        if step.num_tokens
    )
    return seconds
