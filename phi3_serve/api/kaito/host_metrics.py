"""KAITO's ``GET /metrics``: the hardware in KAITO's words and units.

Source: kaito at 870a79778, presets/workspace/inference/text-generation/inference_api.py, get_metrics.
"""

from typing import Any

from phi3_serve.core.host_info import CpuInfo, GpuInfo, HostInfo

GIB = 2**30


def host_metrics(host: HostInfo) -> dict[str, Any]:
    """The JSON body; ``gpu_info`` is null without GPUs, ``cpu_info`` is null with GPUs."""
    return {
        "gpu_info": [_gpu(gpu) for gpu in host.gpus] or None,
        "cpu_info": None if host.cpu is None else _cpu(host.cpu),
    }


def _gpu(gpu: GpuInfo) -> dict[str, Any]:
    return {
        "id": gpu.id,
        "name": gpu.name,
        "load": "unknown" if gpu.load_percent is None else f"{gpu.load_percent:.2f}%",
        "temperature": "unknown" if gpu.temperature_celsius is None else f"{gpu.temperature_celsius:g} C",
        "memory": _memory(gpu.memory_used_bytes, gpu.memory_total_bytes),
    }


def _cpu(cpu: CpuInfo) -> dict[str, Any]:
    return {
        "load_percentage": cpu.load_percent,
        "physical_cores": cpu.num_physical_cores,
        "total_cores": cpu.num_logical_cores,
        "memory": _memory(cpu.memory_used_bytes, cpu.memory_total_bytes),
    }


def _memory(used: int, total: int) -> dict[str, str]:
    """KAITO writes GB and divides by 2**30."""
    return {"used": f"{used / GIB:.2f} GB", "total": f"{total / GIB:.2f} GB"}
