"""The name of the device, and what its driver reports."""

import ctypes
import platform
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
import torch

from phi3_serve.core.host_info import GpuInfo
from phi3_serve.engine.device import (
    CUDA_BYTES,
    _processor_name,
    compute_capability,
    device_name,
    free_gpu_bytes,
    gpu_info,
)


def test_linux_names_the_processor(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: AMD EPYC: 9B14\nprocessor\t: 1\nmodel name\t: another\n")
    assert _processor_name(cpuinfo) == "AMD EPYC: 9B14"


@pytest.mark.parametrize("text", [None, "processor\t: 0\nBogoMIPS\t: 50.00\n"])
def test_a_processor_without_a_name_is_its_architecture(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    assert _processor_name(cpuinfo) == "aarch64"


def test_a_gpu_has_a_name_and_a_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert (device_name(gpu), compute_capability(gpu)) == ("NVIDIA H100", (9, 0))
    assert (device_name(cpu), compute_capability(cpu)) == (_processor_name(Path("/proc/cpuinfo")), None)


@pytest.mark.parametrize(
    ("share", "free", "expected"),
    [
        (1.0, 15.0, 15.0),
        (0.5, 15.0, 8.0 - 1.0 - CUDA_BYTES / 1e9),  # what the process has taken is in its share
        (0.5, 3.0, 3.0),  # others have taken the rest
        (0.05, 15.0, 0.0),
    ],
)
def test_what_a_share_of_a_gpu_leaves(
    share: float, free: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * 1e9), 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 10**9)
    assert free_gpu_bytes(share) / 1e9 == pytest.approx(expected)


# The library of the driver with two GPUs. The first on the PCI bus is not the fastest, which CUDA counts as 0. The power is
# in milliwatts, the energy in millijoules. Source: nvml.h of NVIDIA's driver
NVML = """
#include <string.h>
typedef struct { unsigned gpu, memory; } utilization;
static const char *uuids[] = {"GPU-1111", "GPU-7f22"};
int nvmlInitWithFlags(unsigned flags) { return 0; }
const char *nvmlErrorString(int code) { return "an error"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **gpu) {
    for (long i = 0; i < 2; i++)
        if (!strcmp(uuid, uuids[i])) { *gpu = (void *)(i + 1); return 0; }
    return 6; /* not found */
}
int nvmlDeviceGetUtilizationRates(void *gpu, utilization *rates) {
    *rates = (utilization){(long)gpu == 2 ? 87 : 1, 40};
    return LOAD_CODE;
}
int nvmlDeviceGetTemperature(void *gpu, int sensor, unsigned *celsius) {
    *celsius = 29 + (long)gpu;
    return sensor ? 2 : 0;
}
int nvmlDeviceGetPowerUsage(void *gpu, unsigned *milliwatts) { *milliwatts = (long)gpu == 2 ? 345678 : 1; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *millijoules) {
    *millijoules = (long)gpu == 2 ? 9876543210 : 1;
    return 0;
}
"""


def with_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, load_code: int = 0, uuid: str = "7f22") -> None:
    """A GPU with the given UUID on a machine with ``NVML``, where the reading of the load gives ``load_code``."""
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "libnvidia-ml.so.1"
    command = ["cc", "-shared", "-fPIC", f"-DLOAD_CODE={load_code}", str(tmp_path / "nvml.c"), "-o", str(library)]
    subprocess.run(command, check=True)
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30, 100))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")


def readings(info: GpuInfo) -> tuple[float | None, ...]:
    """Load in percent, temperature in degrees, power in watts, energy in joules."""
    return info.load_percent, info.temperature_celsius, info.power_watts, info.energy_joules


def test_a_gpu_is_found_by_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(tmp_path, monkeypatch)
    info = gpu_info()
    assert readings(info) == (87, 31, 345.678, 9876543.210)
    assert (info.id, info.name, info.memory_used_bytes, info.memory_total_bytes) == ("7f22", "NVIDIA H200", 70, 100)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_a_reading_that_the_driver_does_not_have_is_unknown(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_nvml(tmp_path, monkeypatch, load_code=code)
    assert readings(gpu_info()) == (None, 31, 345.678, 9876543.210)


def test_a_mig_instance_has_its_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its UUID is that of no GPU."""
    with_nvml(tmp_path, monkeypatch, uuid="9999")
    info = gpu_info()
    assert readings(info) == (None, None, None, None)
    assert (info.memory_used_bytes, info.memory_total_bytes) == (70, 100)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without the library of a driver")
def test_without_the_library_of_the_driver_all_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nvml(tmp_path, monkeypatch)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    assert readings(gpu_info()) == (None, None, None, None)
