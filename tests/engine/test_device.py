"""The name of the device."""

import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

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


class NotSupported(Exception):
    """As of nvidia-ml-py, whose errors are no RuntimeErrors."""


def test_a_reading_that_the_driver_does_not_have_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise NotSupported

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30, 100))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="7f22"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200 MIG 1g.18gb")
    monkeypatch.setattr(torch.cuda, "utilization", fails)
    monkeypatch.setattr(torch.cuda, "temperature", lambda: 31)
    info = gpu_info()
    assert (info.load_percent, info.temperature_celsius) == (None, 31)
    assert (info.memory_used_bytes, info.memory_total_bytes) == (70, 100)
