"""The GPU under an engine, in the shape of KAITO's ``GET /metrics``."""

from collections.abc import Callable, Mapping

import torch

from phi3_serve.observability.host import memory_info


def gpu_info() -> Mapping[str, object]:
    """The process's GPU; load and temperature only where the driver's library is installed."""
    free, total = torch.cuda.mem_get_info()
    return {
        "id": str(torch.cuda.get_device_properties(0).uuid),
        "name": torch.cuda.get_device_name(0),
        "load": _or_unknown(lambda: f"{torch.cuda.utilization():.2f}%"),
        "temperature": _or_unknown(lambda: f"{torch.cuda.temperature()} C"),
        "memory": memory_info(total - free, total),
    }


def _or_unknown(read: Callable[[], str]) -> str:
    try:
        return read()
    except (ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or a driver that does not tell
        return "unknown"
