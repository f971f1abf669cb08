"""Stand-ins that are real: what production has between two parts is left out, the parts are not."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from phi3_serve.config.adapter import AdapterConfig
from phi3_serve.config.limits import LimitsConfig
from phi3_serve.config.model import Dtype, ModelConfig
from phi3_serve.core.backend_protocol import Occupancy
from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.core.event import Delta, Done, Failed
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.host_info import HostInfo
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.core.variant_state import VariantState
from phi3_serve.observability.host import cpu_info
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters
from phi3_serve.serving.placement import place
from phi3_serve.serving.replica import Replica
from phi3_serve.serving.replica_options import ReplicaOptions
from phi3_serve.text.tokenizer import Phi3Tokenizer

# Generation parameters with which only a length or a deadline ends an answer: the one token that would is never drawn.
ENDLESS: dict[str, Any] = {"eos_token_id": 703, "suppress_tokens": [703]}


def local_replica(
    name: str,
    source: str,
    *,
    dtype: Dtype = "float32",
    max_waiting: int = 8,
    adapters: tuple[AdapterConfig, ...] = (),
    adapter_memory_bytes: int = 2**30,
    defaults: GenerationParameters = NONE_GIVEN,
    on_fatal_error: Callable[[str], None] = lambda reason: None,
) -> Replica:
    """A replica in this process. It goes on when its engine does not."""
    model = ModelConfig(
        name=name,
        source=source,
        device="cpu",
        dtype=dtype,
        defaults=defaults,
        adapters=adapters,
        adapter_memory_bytes=adapter_memory_bytes,
    )
    limits = LimitsConfig(max_waiting_requests=max_waiting)
    options = ReplicaOptions.from_config(model, place(model, cluster_has_gpu=False), limits)
    replica = Replica(options, on_fatal_error)
    asyncio.run(replica.start())
    return replica


def engine_of(replica: Replica) -> Any:
    """The engine of a replica that has its model."""
    assert replica._model is not None
    return replica._model.engine


def tokenizer_of(replica: Replica) -> Phi3Tokenizer:
    """The tokenizer of a replica that has its model."""
    assert replica._model is not None
    return replica._model.tokenizer


class LocalBackend:
    """``core.Backend`` over a real replica in this process, without Ray between."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.state_of: dict[str, VariantState] = {"tested": VariantState("ready")}
        self.num_places = MAX_ROWS["cpu"]
        self.num_requests = 0

    def capacity(self) -> int:
        return 1000

    def occupancy(self, model: str) -> Occupancy:
        return Occupancy(self.num_places, self.num_requests)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Done, None]:
        self.num_requests += 1
        try:
            async for event in self.replica.generate(request):
                if isinstance(event, Failed):
                    event.error.timings = event.timings
                    raise event.error
                if isinstance(event, Delta | Done):
                    yield event
        finally:
            self.num_requests -= 1

    async def tokenize(self, request: TokenizationRequest) -> Tokenization:
        async with aclosing(self.replica.tokenize(request)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Tokenization):
                    return event
        raise AssertionError("no answer")

    async def states(self) -> Mapping[str, VariantState]:
        return self.state_of

    async def host_info(self) -> HostInfo:
        return HostInfo(cpu=cpu_info())
