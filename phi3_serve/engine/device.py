"""The device under an engine."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from phi3_serve.core.host_info import GpuInfo

CUDA_BYTES = 600 << 20  # that CUDA takes in each process, for its code and its stacks; an estimate


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor_name(Path("/proc/cpuinfo"))


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """That of a GPU of NVIDIA, for example (9, 0); None for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def free_gpu_bytes(share: float) -> int:
    """What this process can still take of the current GPU, if it may have ``share`` of its memory in all.

    ``GpuMemory.of_share`` has the same rule for what is measured once the weights are loaded.
    """
    free, total = torch.cuda.mem_get_info()
    if share >= 1:
        return free
    own = torch.cuda.memory_reserved() + CUDA_BYTES
    return max(0, min(free, int(total * share) - own))


def _processor_name(cpuinfo: Path) -> str:
    """What Linux calls the processor in ``cpuinfo``, or else its architecture; ARM processors have no name there."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name"]
    return names[0] if names else platform.machine()


def gpu_info() -> GpuInfo:
    """The current GPU of this process. A MIG instance has nothing but its memory."""
    free, total = torch.cuda.mem_get_info()
    return GpuInfo(
        id=str(torch.cuda.get_device_properties(0).uuid),
        name=torch.cuda.get_device_name(0),
        load_percent=_if_reported(lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu),
        temperature_celsius=_if_reported(lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, 0)),  # of the die
        memory_used_bytes=total - free,
        memory_total_bytes=total,
        power_watts=_in_thousands(_if_reported(lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu))),
        energy_joules=_in_thousands(_if_reported(lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))),
    )


def _in_thousands(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _if_reported(read: Callable[[Any, Any], int]) -> int | None:
    """The reading of NVML, or None where there is none.

    The GPU is found by its UUID. ``torch.cuda.utilization`` counts the GPUs in the order of the PCI bus, but CUDA puts
    the fastest first (CUDA_DEVICE_ORDER), so on a machine with different GPUs it reads another one:
    https://github.com/pytorch/pytorch/issues/86539
    """
    try:
        import pynvml  # nvidia-ml-py, which is installed on Linux alone

        pynvml.nvmlInit()
        return read(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}"))
    except Exception:  # of nvidia-ml-py, without it, or without its library
        return None
