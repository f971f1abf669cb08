"""The GPU under an engine."""

from collections.abc import Callable

import torch

from phi3_serve.core import GpuInfo


def gpu_info() -> GpuInfo:
    """The current GPU of this process."""
    free, total = torch.cuda.mem_get_info()
    return GpuInfo(
        id=str(torch.cuda.get_device_properties(0).uuid),
        name=torch.cuda.get_device_name(0),
        load_percent=_if_reported(torch.cuda.utilization),
        temperature_celsius=_if_reported(torch.cuda.temperature),
        memory_used_bytes=total - free,
        memory_total_bytes=total,
    )


def _if_reported(read: Callable[[], int]) -> int | None:
    """The reading, or None where nvidia-ml-py is not installed or the driver does not report it."""
    try:
        return read()
    except (ModuleNotFoundError, RuntimeError):
        return None
