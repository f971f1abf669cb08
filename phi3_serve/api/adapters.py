"""The adapters of a request, which are in the field `adapters` or in the name of the model, and those of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict

from phi3_serve.api.fields import number
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.adapter import MAX_ADAPTER_STRENGTH, MAX_ADAPTERS, AdapterChoice, OfferedAdapter
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import InvalidRequest, unknown_adapter
from phi3_serve.parameters import Characters

MAX_NAME = 128  # characters; a longer one is no name, and would fill the log of requests


class RequestAdapter(BaseModel):
    """An adapter (LoRA) that changes the model for this request."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[Characters, Len(1, MAX_NAME)]
    """The name of the adapter: what `/v1/models` lists behind the colon."""
    strength: Annotated[float, Ge(0), Le(MAX_ADAPTER_STRENGTH), number("strength")] | None = None
    """What the change that the adapter makes is multiplied with; by default the strength of the config. With 0 the
    adapter has no effect."""


RequestAdapters = Annotated[list[RequestAdapter], Len(0, MAX_ADAPTERS)]


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What the name of a model in a request means: a served model, and perhaps one of its adapters."""

    model: str  # as served
    adapter: str | None = None

    @property
    def name(self) -> str:
        """The name for the answer."""
        return self.model if self.adapter is None else f"{self.model}:{self.adapter}"

    def adapters(self, given: Sequence[RequestAdapter] | None = None) -> tuple[AdapterChoice, ...]:
        """The adapter in the name, then those of the field `adapters`.

        Raises:
            InvalidRequest: an adapter is named twice, or there are too many.
        """
        in_name = () if self.adapter is None else (AdapterChoice(self.adapter, field="model"),)
        in_field = [
            AdapterChoice(adapter.name, adapter.strength, field=f"adapters.{number}.name")
            for number, adapter in enumerate(given or ())
        ]
        choices = (*in_name, *in_field)
        first: dict[str, AdapterChoice] = {}
        for choice in choices:
            if (other := first.setdefault(choice.name, choice)) is not choice:
                raise InvalidRequest(
                    f"`{choice.field}` names the adapter {choice.name}, as `{other.field}` does; name it once.",
                    choice.field,
                )
        if len(choices) > MAX_ADAPTERS:
            raise InvalidRequest(
                f"`adapters` and `model` name {len(choices)} adapters; the most is {MAX_ADAPTERS}.", "adapters"
            )
        return choices


def offered_adapters(config: ModelConfig, state: VariantState) -> tuple[OfferedAdapter, ...]:
    """The adapters of a model that requests may name: what its replicas have announced, else those of the config."""
    if state.adapters is not None:
        return state.adapters
    return tuple(adapter.offered for adapter in config.offered_adapters)


def require_adapter(named: NamedModel, config: ModelConfig, state: VariantState) -> None:
    """Raise UnknownModel if ``named`` has an adapter that its model does not offer."""
    names = [adapter.name for adapter in offered_adapters(config, state)]
    if named.adapter is not None and named.adapter not in names:
        raise unknown_adapter(named.adapter, "model", named.model, names)
