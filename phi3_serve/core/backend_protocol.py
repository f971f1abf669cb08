"""The protocol of a backend: what the API needs from what serves the models."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.host_info import HostInfo
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.core.variant_state import VariantState


@dataclass(frozen=True, slots=True)
class Occupancy:
    """How busy the replicas of one model are."""

    num_places: int  # answers that they compute at once; 0 if no replica runs
    num_requests: int  # that this process has with them, running or waiting


class Backend(Protocol):
    """What the API needs from the part that serves the models."""

    def capacity(self) -> int:
        """The number of requests that can run or wait in all models together."""

    def occupancy(self, model: str) -> Occupancy:
        """How busy the replicas of ``model`` are."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Done, None]:
        """Run ``request``; Phi3ServeError before or between events."""

    async def tokenize(self, request: TokenizationRequest) -> Tokenization:
        """Use the tokenizer of a model; Phi3ServeError if it cannot be used, or not for this request."""

    async def states(self) -> Mapping[str, VariantState]:
        """The state of every declared variant. The call starts no replica."""

    async def host_info(self) -> HostInfo:
        """The hardware of the running replicas, or of the ingress if no replica has a GPU."""
