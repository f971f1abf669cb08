"""The hardware that models run on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInfo:
    """One GPU. Load, temperature, power and energy are None where the driver does not report them."""

    id: str
    name: str
    load_percent: float | None
    temperature_celsius: float | None
    memory_used_bytes: int
    memory_total_bytes: int
    power_watts: float | None = None
    energy_joules: float | None = None  # since the driver was loaded

    @property
    def load(self) -> float | None:
        """The load from 0 to 1."""
        return None if self.load_percent is None else self.load_percent / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuInfo:
    """The CPU and the main memory of one node. Core counts are None where the system does not report them."""

    load_percent: float
    num_physical_cores: int | None
    num_logical_cores: int | None
    memory_used_bytes: int
    memory_total_bytes: int


@dataclass(frozen=True, slots=True)
class HostInfo:
    """The hardware that the models run on: the GPUs of running replicas, or a CPU without GPUs."""

    gpus: tuple[GpuInfo, ...] = ()
    cpu: CpuInfo | None = None
