"""How fast the engine runs at real shapes with random weights, beside the limits of the card."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiler

from phi3_serve.bench.roofline import Machine, linear_sizes, measure_machine, weight_bytes
from phi3_serve.bench.shapes import Model, as_loaded, build
from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.core.adapter import Adapter, AppliedAdapter
from phi3_serve.core.engine_event import EngineEvent
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.engine.adapters.pages import PageLayout
from phi3_serve.engine.engine_core import EngineCore, StepOutput
from phi3_serve.engine.kernels.cuda import NOTHING_GATHERED, CudaKernels
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.memory import EngineSizes, block_bytes
from phi3_serve.engine.precision import problem_of_kv_cache_dtype, problem_of_quantization
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve
from tests.engine.adapters.drawing import drawn
from tests.gpu.report import say, write

DECODES = {
    "mini": [(1, 512), (32, 512), (256, 512), (1, 2000), (32, 2000)],
    "medium": [(1, 512), (32, 512), (256, 512), (1, 2000), (32, 2000)],
}
ADAPTED = (32, 512, 8, 16)  # rows, context, different adapters, their rank
PREFILLS = (512, 2048, 4000, 32_000)
PROFILED = {(1, 512), (32, 512), (256, 512)}
# with weights of fewer bits
QUANTIZED_DECODES = [(1, 512), (8, 512), (32, 512), (128, 512), (256, 512)]
QUANTIZED_PREFILLS = (512, 2048)
RESERVED = 6 << 30  # bytes for activations
BUDGET = 2048  # tokens in a step
MEASURED = 40  # steps in which all requests decode
CONTEXT = 40_000


class Bench:
    """An engine without a thread, and the limits of its steps."""

    def __init__(self, shape: str, quantization: str, kv_cache_dtype: KvCacheDtype) -> None:
        self.machine: Machine = measure_machine(torch.device("cuda"), torch.bfloat16, quantization)
        self.shape = shape if quantization == NO_QUANTIZATION else f"{shape}, {quantization}"
        self.shape += "" if kv_cache_dtype == "auto" else f", cache in {kv_cache_dtype}"
        model = build(Model(shape, "cuda", torch.bfloat16, quantization))
        self.config = model.config
        self.key_bytes = block_bytes(model.config, torch.bfloat16, kv_cache_dtype) // 16  # of one token
        self.weights = sum(outputs * inputs for outputs, inputs in linear_sizes(model.config))
        self.weight_bytes = weight_bytes(model.config, torch.bfloat16, quantization)
        blocks = (torch.cuda.mem_get_info()[0] - RESERVED) // (self.key_bytes * 16)
        pages = ADAPTED[2] * PageLayout(model.config, torch.bfloat16).num_bytes  # of the reserved bytes
        sizes = EngineSizes(
            num_blocks=blocks,
            token_budget=BUDGET,
            max_rows=256,
            prefix_cache=False,
            adapter_bytes=pages,
            kv_cache_dtype=kv_cache_dtype,
        )
        began = time.time()
        self.core = EngineCore(as_loaded(model, quantization), sizes, releases_weights=True)
        self.capacity = blocks * 16
        info = self.core.info
        self.load = {
            "seconds": time.time() - began,
            "cuda_graphs": info.cuda_graphs,
            "flash_attention": info.flash_attention,
            "replaced_kernels": dict(info.replaced_kernels),
        }
        say(f"{shape}: cache for {self.capacity:,} tokens; load:", self.load)

    def add(self, number: int, prompt_tokens: int, new_tokens: int, adapters: Sequence[Adapter] = ()) -> None:
        """Queue a greedy request with one of ``adapters``, if there are any."""
        prompt = torch.randint(5, 30_000, (prompt_tokens,)).tolist()
        request = _request(number, prompt, new_tokens)
        if adapters:
            request = replace(request, adapters=(AppliedAdapter(adapters[number % len(adapters)], 1.0),))
        self.core.scheduler.add(self.core.generation(request, _ignore))

    def step(self) -> StepOutput:
        """One step; a failed request is an error."""
        output = self.core.run(self.core.schedule())
        for _, event in output.events:
            if isinstance(event, Failed):
                raise event.error
        return output

    def decode_with_adapters(self) -> dict[str, float] | None:
        """Steps in which the rows have different adapters, of all linear layers, beside plain ones."""
        batch, context, count, rank = ADAPTED
        adapters = [self.core.runner.prepare_adapter(drawn(self.config, rank, seed)) for seed in range(count)]
        plain, adapted = self.decode(batch, context), self.decode(batch, context, adapters)
        if plain is None or adapted is None:
            return None
        share = adapted["tokens_per_s"] / plain["tokens_per_s"]
        say(f"{self.shape}, {batch} rows over {count} adapters of rank {rank}: {share:.0%} of the plain speed")
        return {**adapted, "of_plain": share}

    def decode(self, batch: int, context: int, adapters: Sequence[Adapter] = ()) -> dict[str, float] | None:
        """Steps in which ``batch`` requests decode at about ``context`` tokens."""
        new_tokens = math.ceil(batch * context / BUDGET) + MEASURED
        prompt = context - new_tokens // 2
        if batch * (context + new_tokens) > self.capacity:
            say(f"{self.shape}, {batch} at {context}: does not fit into {self.capacity:,} tokens")
            return None
        for number in range(batch):
            self.add(number, prompt, new_tokens, adapters)
        steps: list[tuple[float, int]] = []
        while self.core.scheduler.has_work:
            began = time.perf_counter()
            stats = self.step().stats
            if stats.num_tokens == batch:
                steps.append((time.perf_counter() - began, stats.num_keys))
        steps = steps[4:-3]
        seconds, keys = (statistics.fmean(column) for column in zip(*steps, strict=True))
        limit = max(
            (self.weight_bytes + keys * self.key_bytes) / self.machine.bytes_per_s,
            (2 * self.weights * batch + self._attention * keys) / self.machine.flops_per_s,
        )
        say(
            f"{self.shape}, {batch} at {context}: {seconds * 1e3:.2f} ms a step, {batch / seconds:,.0f} tokens/s, "
            f"{limit / seconds:.0%} of the limit ({len(steps)} steps)"
        )
        return {"step_ms": seconds * 1e3, "tokens_per_s": batch / seconds, "of_limit": limit / seconds}

    def prefill_in_triton(self, tokens: int) -> dict[str, float] | None:
        """The same as ``prefill``, if torch computes the attention of such chunks there."""
        kernels = self.core.runner.kernels
        if not isinstance(kernels, CudaKernels) or not kernels.gathers(min(tokens, BUDGET), tokens):
            return None
        gathered, kernels.gathered = kernels.gathered, NOTHING_GATHERED
        try:
            return self.prefill(tokens, ", attention in Triton")
        finally:
            kernels.gathered = gathered

    def prefill(self, tokens: int, about: str = "") -> dict[str, float]:
        """The time to the first token of one prompt on an idle engine, the best of three."""
        times = []
        for number in range(4):
            self.add(number, tokens, 1)
            torch.cuda.synchronize()
            began = time.perf_counter()
            while self.core.scheduler.has_work:
                self.step()
            times.append(time.perf_counter() - began)
        seconds = min(times[1:])
        head = self.config.vocab_size * self.config.hidden_size
        flops = 2 * (self.weights - head) * tokens + 2 * head + self._attention / 2 * tokens**2
        limit = max(flops / self.machine.flops_per_s, self.weight_bytes / self.machine.bytes_per_s)
        say(
            f"{self.shape}, prompt of {tokens}{about}: first token after {seconds * 1e3:.1f} ms, {tokens / seconds:,.0f} "
            f"tokens/s, {limit / seconds:.0%} of the limit"
        )
        return {"ms": seconds * 1e3, "tokens_per_s": tokens / seconds, "of_limit": limit / seconds}

    def breakdown(self, batch: int, context: int) -> dict[str, Any]:
        """The time of the GPU in a step, by kernel."""
        new_tokens = math.ceil(batch * context / BUDGET) + 20
        for number in range(batch):
            self.add(number, context - 20, new_tokens)
        while self.step().stats.num_tokens != batch:
            pass
        for _ in range(3):
            self.step()
        with profiler(activities=[ProfilerActivity.CUDA], acc_events=True) as found:
            began = time.perf_counter()
            for _ in range(8):
                self.step()
            torch.cuda.synchronize()
            wall = (time.perf_counter() - began) / 8
        while self.core.scheduler.has_work:
            self.step()
        rows = sorted(
            ((e.self_device_time_total / 8e3, e.count / 8, e.key) for e in found.key_averages()), reverse=True
        )
        busy = sum(milliseconds for milliseconds, *_ in rows)
        say(
            f"{self.shape}, {batch} at {context}: {wall * 1e3:.2f} ms with the profiler, the GPU is busy for {busy:.2f}"
        )
        for milliseconds, count, name in rows[:10]:
            print(f"          {milliseconds:7.3f} ms  {count:6.1f} x  {name[:100]}", flush=True)
        return {"step_ms": wall * 1e3, "busy_ms": busy, "kernels": rows[:20]}

    @property
    def _attention(self) -> float:
        """Operations of attention for one query and one key."""
        return float(4 * self.config.num_hidden_layers * self.config.hidden_size)


def _request(number: int, prompt: list[int], new_tokens: int) -> EngineRequest:
    given = GenerationParameters(do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    parameters = resolve(given, GenerationParameters())
    return prepare(f"{number}", prompt, parameters, context_length=CONTEXT, timeout_s=600, stream=True)


def _ignore(event: EngineEvent) -> None:
    """The caller reads the events of a step."""


def main(shape: str, quantization: str = NO_QUANTIZATION, kv_cache_dtype: KvCacheDtype = "auto") -> dict[str, Any]:
    """All measurements of one shape, or a few with weights or a cache of fewer bits."""
    capability = torch.cuda.get_device_capability()
    if problem := problem_of_quantization(quantization, capability) or problem_of_kv_cache_dtype(
        kv_cache_dtype, capability
    ):
        say(f"{shape}: not measured, {problem}")
        return {"problem": problem}
    is_whole = quantization == NO_QUANTIZATION and kv_cache_dtype == "auto"
    bench = Bench(shape, quantization, kv_cache_dtype)
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name(0),
        "load": bench.load,
        "bytes_per_s": bench.machine.bytes_per_s,
        "flops_per_s": bench.machine.flops_per_s,
    }
    say(f"copy {bench.machine.bytes_per_s / 1e12:.2f} TB/s, matmul {bench.machine.flops_per_s / 1e12:.0f} TFLOP/s")
    for batch, context in DECODES[shape] if quantization == NO_QUANTIZATION else QUANTIZED_DECODES:
        found[f"decode {batch} at {context}"] = bench.decode(batch, context)
        if (batch, context) in PROFILED and found[f"decode {batch} at {context}"]:
            found[f"breakdown {batch} at {context}"] = bench.breakdown(batch, context)
        write(found)
    found["decode with adapters"] = bench.decode_with_adapters()
    write(found)
    for tokens in PREFILLS if is_whole else QUANTIZED_PREFILLS:
        found[f"prefill {tokens}"] = bench.prefill(tokens)
        if (in_triton := bench.prefill_in_triton(tokens)) is not None:
            found[f"prefill {tokens} in Triton"] = in_triton
        write(found)
    return found
