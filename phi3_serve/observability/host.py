"""The CPU and the memory under a process."""

import psutil

from phi3_serve.core.host_info import CpuInfo


def cpu_info() -> CpuInfo:
    """Load, cores and memory of this node. Measuring the load takes 0.1 seconds."""
    memory = psutil.virtual_memory()
    return CpuInfo(
        load_percent=psutil.cpu_percent(interval=0.1),
        num_physical_cores=psutil.cpu_count(logical=False),
        num_logical_cores=psutil.cpu_count(logical=True),
        memory_used_bytes=memory.used,
        memory_total_bytes=memory.total,
    )
