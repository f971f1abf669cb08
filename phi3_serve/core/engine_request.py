"""A request as engines take it."""

import math
from dataclasses import dataclass

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.core.constraint import Constraint
from phi3_serve.resolved_parameters import ResolvedParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request as engines take it: token ids and resolved parameters. ``prepare.prepare`` makes it."""

    request_id: str
    prompt_ids: tuple[int, ...]
    parameters: ResolvedParameters
    min_length: int  # tokens of prompt and answer together; may be above max_length, which wins
    max_length: int  # tokens of prompt and answer together
    fills_context: bool = False  # max_length is the whole context; an engine may reduce it to what its cache holds
    stream: bool
    deadline: float  # time.monotonic() seconds; a request that is not finished by then fails
    begin_by: float = math.inf  # time.monotonic() seconds; a request that is not started by then is refused
    constraint: Constraint | None = None  # of ``parameters.structured_output``; an engine advances forks of it
    adapters: tuple[AppliedAdapter, ...] = ()
