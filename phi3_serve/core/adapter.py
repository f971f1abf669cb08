"""LoRA adapters: as a request names them, as a replica offers them, and as an engine has loaded them."""

from dataclasses import dataclass
from typing import Protocol

from phi3_serve.pickled_by_name import pickled_by_name

MAX_ADAPTERS = 8  # of one request
MAX_ADAPTER_STRENGTH = 10.0


@pickled_by_name
@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """An adapter (LoRA) that a request names."""

    name: str
    strength: float | None = None  # multiplies the change that the adapter makes; None: the strength of the config
    field: str = "adapters"  # of the client's body that has the name, for errors


@dataclass(frozen=True, slots=True)
class OfferedAdapter:
    """An adapter that requests may name."""

    name: str
    source: str  # directory or Hub repository id
    strength: float  # of a request that gives none
    revision: str | None = None  # of a Hub repository


class Adapter(Protocol):
    """An adapter that an engine has loaded. Whoever holds it keeps its memory; a new version is another object."""

    @property
    def name(self) -> str:
        """By which requests choose it."""

    @property
    def number(self) -> int:
        """Of this object. No other one that the process loads ever has it; caches know an adapter by it."""

    @property
    def num_bytes(self) -> int:
        """What it takes in the main memory."""


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter of a request, and the strength that multiplies the change that it makes."""

    adapter: Adapter
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCounts:
    """What a replica has done with adapters since its start."""

    num_in_memory: int = 0
    bytes_in_memory: int = 0
    num_loads: int = 0  # that have succeeded
    load_s: float = 0.0  # seconds of these loads together, downloads included
    num_evictions: int = 0
    num_failures: int = 0
