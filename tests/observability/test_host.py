import psutil

from phi3_serve.observability.host import cpu_info


def test_cpu_info_counts_cores_percent_and_bytes() -> None:
    info = cpu_info()
    assert 0 <= info.load_percent <= 100
    assert info.num_logical_cores == psutil.cpu_count()
    assert 0 < info.memory_used_bytes < info.memory_total_bytes == psutil.virtual_memory().total
