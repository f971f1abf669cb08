"""What engines run on and what they have counted, as metrics of Prometheus. ``metrics`` has the names."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from phi3_serve.core.adapter import AdapterCounts
from phi3_serve.core.engine_info import EngineInfo, Load
from phi3_serve.core.host_info import GpuInfo
from phi3_serve.engine_statistics import EngineStatistics, Histogram

_MODEL = ("model_name",)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReading:
    """One engine at one moment."""

    info: EngineInfo
    load: Load
    statistics: EngineStatistics
    load_s: float  # seconds that the load of its model took
    gpu: GpuInfo | None = None
    adapters: AdapterCounts = field(default_factory=AdapterCounts)


class EngineFacts(Collector):
    """What the engines of ready models run on, as ``GET /metrics`` shows it."""

    def __init__(self, engines: Mapping[str, EngineInfo]) -> None:
        """``engines``: by model."""
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """The metrics; of no engine they have no samples."""
        labels = (*_MODEL, "device", "compute_capability", "dtype", "quantization", "kernels")
        info = GaugeMetricFamily("phi3_serve_engine_info", "1; what the engine of a model runs on", labels=labels)
        replaced = _gauge("num_kernels_replaced", "Kernels that slower ones replace")
        tokens = _gauge("kv_cache_tokens", "Tokens that the key-value cache holds")
        for model, of in self._engines.items():
            capability = of.compute_capability or ""
            info.add_metric((model, of.device, capability, of.dtype, of.quantization, of.kernels), 1)
            replaced.add_metric((model,), len(of.replaced_kernels))
            tokens.add_metric((model,), of.cache_tokens)
        yield from (info, replaced, tokens)


class EngineMetrics(Collector):
    """Everything that is known of the engine of one replica."""

    def __init__(self, model: str, read: Callable[[], EngineReading | None]) -> None:
        """``read``: None while the replica has no model."""
        self._model = model
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """The metrics; without a model there are none."""
        if (reading := self._read()) is None:
            return
        yield from EngineFacts({self._model: reading.info}).collect()
        yield self._with(_gauge("model_load_seconds", "Time that the last load of the model took"), reading.load_s)
        yield from self._of_load(reading.load)
        yield from self._of_counts(reading.statistics)
        yield from self._of_distributions(reading.statistics)
        yield from self._of_adapters(reading.adapters)
        if reading.gpu is not None:
            yield from self._of_gpu(reading.gpu)

    def _of_load(self, load: Load) -> Iterator[Metric]:
        usage = load.num_blocks_used / load.num_blocks if load.num_blocks else 0.0
        for name, meaning, value in (
            ("num_requests_running", "Requests in the batch", load.num_running),
            ("num_requests_waiting", "Requests in the queue", load.num_waiting),
            ("num_requests_preempted", "Waiting requests that have run and lost their place", load.num_preempted),
            ("kv_cache_usage_perc", "Used part of the key-value cache, from 0 to 1", usage),
        ):
            yield self._with(_gauge(name, meaning), value)

    def _of_counts(self, counted: EngineStatistics) -> Iterator[Metric]:
        for name, meaning, value in (
            ("prompt_tokens", "Tokens of prompts that were read", counted.prompt_tokens),
            ("generation_tokens", "Tokens that were chosen", counted.generation_tokens),
            ("num_preemptions", "Requests that lost their place in the batch", counted.num_preemptions),
            ("prefix_cache_queries", "Tokens looked for in the prefix cache", counted.prefix_cache_queries),
            ("prefix_cache_hits", "Tokens found in the prefix cache", counted.prefix_cache_hits),
            ("spec_decode_num_drafts", "Drafts of next tokens", counted.num_drafts),
            ("spec_decode_num_draft_tokens", "Tokens of drafts", counted.num_draft_tokens),
            ("spec_decode_num_accepted_tokens", "Tokens of drafts that were chosen", counted.num_accepted_tokens),
        ):
            yield self._with(CounterMetricFamily(f"phi3_serve_{name}", meaning, labels=_MODEL), value)

    def _of_distributions(self, counted: EngineStatistics) -> Iterator[Metric]:
        for name, meaning, histogram in (
            ("request_queue_time_seconds", "Time from the arrival of a request to its first step", counted.queue_s),
            ("request_prefill_time_seconds", "Time from there to its first token", counted.prefill_s),
            ("request_decode_time_seconds", "Time from there to its last token", counted.decode_s),
            ("inter_token_latency_seconds", "Time between two tokens of a request", counted.inter_token_s),
            ("iteration_tokens_total", "Tokens run in one step", counted.step_tokens),
            ("batch_size", "Sequences run in one step", counted.step_sequences),
        ):
            family = HistogramMetricFamily(f"phi3_serve_{name}", meaning, labels=_MODEL)
            family.add_metric((self._model,), _cumulative(histogram), histogram.sum)
            yield family

    def _of_adapters(self, counted: AdapterCounts) -> Iterator[Metric]:
        yield self._with(_gauge("adapters_in_memory", "Adapters in the main memory"), counted.num_in_memory)
        yield self._with(_gauge("adapter_memory_bytes", "Main memory of these adapters"), counted.bytes_in_memory)
        for name, meaning, value in (
            ("adapter_loads", "Adapters that were loaded", counted.num_loads),
            ("adapter_load_seconds", "Time that these loads took, downloads included", counted.load_s),
            ("adapter_evictions", "Adapters that were dropped from the main memory for others", counted.num_evictions),
            ("adapter_load_failures", "Loads of adapters that failed", counted.num_failures),
        ):
            yield self._with(CounterMetricFamily(f"phi3_serve_{name}", meaning, labels=_MODEL), value)

    def _of_gpu(self, gpu: GpuInfo) -> Iterator[Metric]:
        for name, meaning, value in (
            ("gpu_utilization_perc", "Part of the time in which the GPU ran a kernel, from 0 to 1", gpu.load),
            ("gpu_memory_used_bytes", "Used memory of the GPU", gpu.memory_used_bytes),
            ("gpu_memory_total_bytes", "Memory of the GPU", gpu.memory_total_bytes),
            ("gpu_temperature_celsius", "Temperature of the GPU", gpu.temperature_celsius),
            ("gpu_power_watts", "Power that the GPU draws", gpu.power_watts),
        ):
            if value is not None:
                yield self._with(_gauge(name, meaning), value)
        if gpu.energy_joules is not None:
            energy = CounterMetricFamily("phi3_serve_gpu_energy_joules", "Energy that the GPU has used", labels=_MODEL)
            yield self._with(energy, gpu.energy_joules)

    def _with(self, family: "GaugeMetricFamily | CounterMetricFamily", value: float) -> Metric:
        family.add_metric((self._model,), value)
        return family


def _gauge(name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"phi3_serve_{name}", meaning, labels=_MODEL)


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """The number of values up to each bound, as Prometheus wants it."""
    buckets, total = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if math.isinf(bound) else str(bound), float(total)))
    return buckets
