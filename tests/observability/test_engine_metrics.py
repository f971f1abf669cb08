"""The engine's figures as Prometheus reads them."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from phi3_serve.core.engine_info import EngineInfo, Load
from phi3_serve.core.host_info import GpuInfo
from phi3_serve.engine_statistics import EngineStatistics
from phi3_serve.observability.engine_metrics import EngineMetrics, EngineReading

INFO = EngineInfo(
    device="NVIDIA H100",
    compute_capability="9.0",
    dtype="bfloat16",
    weight_dtype="bfloat16",
    quantization="none",
    kv_cache_dtype="float32",
    kernels="cuda",
    replaced_kernels={},
    cache_tokens=1600,
    cache_bytes=64,
    weight_bytes=128,
    weight_format="",
)
GPU = GpuInfo(
    id="a",
    name="NVIDIA H100",
    load_percent=40,
    temperature_celsius=None,
    memory_used_bytes=6,
    memory_total_bytes=8,
    energy_joules=12.5,
)


def samples(reading: EngineReading | None) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(EngineMetrics("m", lambda: reading))
    found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.labels["model_name"] == "m"
            le = sample.labels.get("le")
            found[sample.name.removeprefix("phi3_serve_") + (f"<={le}" if le else "")] = sample.value
    return found


def test_a_reading_is_written_for_prometheus() -> None:
    statistics = EngineStatistics()
    statistics.generation_tokens = 7
    statistics.queue_s.observe(0.3)
    statistics.queue_s.observe(4000.0)
    load = Load(num_running=2, num_waiting=3, num_blocks=100, num_blocks_used=25, num_preempted=1)
    found = samples(EngineReading(info=INFO, load=load, statistics=statistics, load_s=1.5, gpu=GPU))
    assert found["kv_cache_usage_perc"] == 0.25
    assert (found["num_requests_running"], found["num_requests_waiting"], found["num_requests_preempted"]) == (2, 3, 1)
    assert found["generation_tokens_total"] == 7
    assert found["model_load_seconds"] == 1.5
    assert found["engine_info"] == 1
    queue = "request_queue_time_seconds"
    assert [found[f"{queue}_bucket<={le}"] for le in ("0.25", "0.5", "600.0", "+Inf")] == [0, 1, 1, 2]
    assert (found[f"{queue}_sum"], found[f"{queue}_count"]) == (4000.3, 2)
    assert (found["gpu_utilization_perc"], found["gpu_energy_joules_total"]) == (0.4, 12.5)
    assert "gpu_temperature_celsius" not in found  # the driver does not report it


def test_without_a_model_there_is_nothing() -> None:
    assert samples(None) == {}
