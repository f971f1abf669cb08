"""KAITO's ``GET /metrics``: its keys, its units, its word for what the driver does not report."""

from dataclasses import replace

from phi3_serve.api.kaito.host_metrics import GIB, host_metrics
from phi3_serve.core.host_info import CpuInfo, GpuInfo, HostInfo

CPU = CpuInfo(
    load_percent=12.5,
    num_physical_cores=4,
    num_logical_cores=8,
    memory_used_bytes=GIB // 2,
    memory_total_bytes=16 * GIB,
)
GPU = GpuInfo(
    id="7f22",
    name="NVIDIA A100",
    load_percent=0,
    temperature_celsius=31,
    memory_used_bytes=int(1.25 * GIB),
    memory_total_bytes=80 * GIB,
)


def test_a_node_without_gpu() -> None:
    assert host_metrics(HostInfo(cpu=CPU)) == {
        "gpu_info": None,
        "cpu_info": {
            "load_percentage": 12.5,
            "physical_cores": 4,
            "total_cores": 8,
            "memory": {"used": "0.50 GB", "total": "16.00 GB"},
        },
    }


def test_gpus() -> None:
    silent = replace(GPU, load_percent=None, temperature_celsius=None)
    metrics = host_metrics(HostInfo(gpus=(GPU, silent)))
    memory = {"used": "1.25 GB", "total": "80.00 GB"}
    assert metrics == {
        "gpu_info": [
            {"id": "7f22", "name": "NVIDIA A100", "load": "0.00%", "temperature": "31 C", "memory": memory},
            {"id": "7f22", "name": "NVIDIA A100", "load": "unknown", "temperature": "unknown", "memory": memory},
        ],
        "cpu_info": None,
    }
