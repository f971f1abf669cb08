"""The hardware under a process, in the shape of KAITO's ``GET /metrics``.

Source: kaito, presets/workspace/inference/text-generation/inference_api.py, get_metrics.
"""

from collections.abc import Mapping

import psutil

GIB = 2**30


def cpu_info() -> Mapping[str, object]:
    """Load, cores and memory of this node; takes a tenth of a second to measure."""
    memory = psutil.virtual_memory()
    return {
        "load_percentage": psutil.cpu_percent(interval=0.1),
        "physical_cores": psutil.cpu_count(logical=False),
        "total_cores": psutil.cpu_count(logical=True),
        "memory": memory_info(memory.used, memory.total),
    }


def memory_info(used: int, total: int) -> Mapping[str, str]:
    """Bytes used and in all, in the words of KAITO."""
    return {"used": f"{used / GIB:.2f} GB", "total": f"{total / GIB:.2f} GB"}
