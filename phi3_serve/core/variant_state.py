"""How a variant stands, from ready to failed."""

from dataclasses import dataclass
from typing import Literal

from phi3_serve.core.adapter import OfferedAdapter
from phi3_serve.core.engine_info import EngineInfo

# How a variant stands: it answers; its replica is starting; nothing runs until a request asks for it;
# no node can hold it; it tried to start and cannot.
State = Literal["ready", "loading", "scaled_to_zero", "unplaceable", "failed"]


@dataclass(frozen=True, slots=True)
class VariantState:
    """The state of one variant; ``detail`` gives the reason in words."""

    state: State
    detail: str = ""
    retry_after_s: float | None = None
    num_replicas: int = 0  # replicas that answer
    engine: EngineInfo | None = None  # of the replica that started last, if it is known
    num_tries: int = 0  # to load the model, that have failed
    next_try_s: float | None = None  # seconds until the next try
    adapters: tuple[OfferedAdapter, ...] | None = None  # None: not known
