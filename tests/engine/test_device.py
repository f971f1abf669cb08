"""The name of the device."""

import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from phi3_serve.engine.device import _processor_name, compute_capability, device_name, gpu_info


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
