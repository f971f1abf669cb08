"""The configuration: ``args`` of ``serve_config.yaml`` as one frozen model."""

from collections import Counter
from typing import Self

from pydantic import Field, model_validator

from phi3_serve import catalogue
from phi3_serve.config.api_keys import AuthConfig
from phi3_serve.config.batches import BatchesConfig
from phi3_serve.config.http import HttpConfig
from phi3_serve.config.limits import LimitsConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.config.observability import LogsConfig, TracesConfig
from phi3_serve.config.strict_model import StrictModel
from phi3_serve.errors import did_you_mean


class ClusterConfig(StrictModel):
    """Properties of the Ray cluster."""

    elastic: bool = False
    """Whether an autoscaler adds nodes. If so, requests wait for a resource that no node has now, and `device: auto` of
    a model outside the catalogue is a GPU."""


def _every_variant() -> tuple[ModelConfig, ...]:
    return tuple(ModelConfig(name=v.name, min_replicas=0 if v.needs_gpu else 1) for v in catalogue.VARIANTS)


class AppConfig(StrictModel):
    """The ``args`` of the Serve config."""

    default_model: str | None = None
    """The model for requests without a model name; by default the first of `models`."""
    models: tuple[ModelConfig, ...] = Field(default_factory=_every_variant)
    """The served models; by default the whole catalogue, the real variants scaled to zero."""
    limits: LimitsConfig = LimitsConfig()
    """Limits on requests."""
    cluster: ClusterConfig = ClusterConfig()
    """Properties of the cluster."""
    auth: AuthConfig = AuthConfig()
    """API keys."""
    http: HttpConfig = HttpConfig()
    """The ingress."""
    batches: BatchesConfig = BatchesConfig()
    """OpenAI's files and batches."""
    logs: LogsConfig = LogsConfig()
    """The log of requests."""
    traces: TracesConfig = TracesConfig()
    """Traces of requests."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [m.served_name for m in self.models]
        if not names:
            raise ValueError("models is empty; declare at least one")
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"model `{doubled[0]}` is declared twice")
        if self.default_model is not None and catalogue.find(self.default_model, names) is None:
            hint = did_you_mean(self.default_model, names, f": {', '.join(names)}")
            raise ValueError(f"default_model `{self.default_model}` is not one of models{hint}")
        return self

    @property
    def default_model_name(self) -> str:
        """The served name of the default model."""
        names = [m.served_name for m in self.models]
        return names[0] if self.default_model is None else catalogue.find(self.default_model, names) or names[0]
