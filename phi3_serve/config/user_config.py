"""What a running deployment takes without a restart: ``user_config`` of Ray Serve."""

from typing import Any, TypeVar

from pydantic import field_validator

from phi3_serve.config.adapter import AdapterConfig, with_unique_names
from phi3_serve.config.api_keys import AuthConfig
from phi3_serve.config.defaults import without_refused
from phi3_serve.config.limits import LimitsConfig, QueueLimitsConfig
from phi3_serve.config.strict_model import StrictModel
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters

Limits = TypeVar("Limits", bound=QueueLimitsConfig)


class LiveConfig(StrictModel):
    """`user_config` of a deployment. A change of it reaches the running replicas."""

    limits: LimitsConfig = LimitsConfig()
    """Limits that override those of `args`."""

    def over(self, limits: Limits) -> Limits:
        """``limits`` with the overrides."""
        given = self.limits.model_fields_set & set(type(limits).model_fields)
        return limits.model_copy(update={name: getattr(self.limits, name) for name in given})


class LiveModelConfig(LiveConfig):
    """`user_config` of a model's deployment."""

    defaults: GenerationParameters = NONE_GIVEN
    """Defaults that override the model's `defaults`."""
    adapters: tuple[AdapterConfig, ...] = ()
    """The adapters that requests may name. Serve puts the whole `user_config` in the place of the one that is made from
    `args`, so without this field none is offered."""

    @field_validator("defaults", mode="before")
    @classmethod
    def _refuse_wrong_names(cls, given: Any) -> Any:
        return without_refused(given)

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, given: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
        if merged := [adapter.name for adapter in given if adapter.always]:
            raise ValueError(
                f"`{merged[0]}` has `always`, which restarts the replicas and is possible in `args` only; "
                "leave it out to offer the adapter by name"
            )
        return with_unique_names(given)


class LiveIngressConfig(LiveConfig):
    """`user_config` of the deployment `ingress`."""

    auth: AuthConfig | None = None
    """The API keys; they replace all keys of `args`."""
