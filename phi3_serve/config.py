"""The configuration: ``args`` of ``serve_config.yaml`` as one frozen model."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from phi3_serve import catalogue
from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters, refuse_by_name

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Routing = Literal["load", "prefix"]

# A model's name becomes the name of its deployment, beside the ingress.
INGRESS_NAME = "ingress"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def unknown_key_message(key: str, valid: list[str]) -> str:
    """The error text for a key that does not exist."""
    return f"unknown key `{key}`" + did_you_mean(key, valid, f"; valid keys: {', '.join(valid)}")


class StrictModel(BaseModel):
    """Frozen, and refuses unknown keys by name with the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = list(cls.model_fields)
            if unknown := [str(key) for key in data if key not in cls.model_fields]:
                raise ValueError(unknown_key_message(unknown[0], valid))
        return data


class ScalingConfig(StrictModel):
    """When replicas are added and taken away, where max_replicas is above min_replicas."""

    target_load: float | None = Field(default=None, gt=0)
    """Requests, running and waiting, that a replica should have: above it another is started. By default half of
    what may wait, and one."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds that the load must last before a replica is added; the first one of a sleeping model starts at once."""
    downscale_delay_s: float = Field(default=600.0, ge=0)
    """Seconds without that load before a replica is taken away."""
    sleep_after_s: float | None = Field(default=None, ge=0)
    """Seconds without any request before the last one is; by default downscale_delay_s. Only with min_replicas 0."""
    look_back_s: float = Field(default=15.0, gt=0)
    """Seconds over which the load is averaged; above the 10 s in which replicas report it."""


class HealthConfig(StrictModel):
    """When a replica is taken for broken, and replaced."""

    check_period_s: float = Field(default=10.0, gt=0)
    """Seconds between two checks."""
    check_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds in which a check must be answered; three that are not end the replica."""
    stuck_after_s: float = Field(default=300.0, gt=0)
    """Seconds in one step of the model after which the engine is taken for hung."""


class RolloutConfig(StrictModel):
    """How a new version takes over from an old one."""

    max_surge_percent: int | None = Field(default=None, ge=0, le=100)
    """Replicas of the new version that may start before the old ones stop, in percent of the replicas. By default 100
    on the CPU; 0 on a GPU, where none would be free for them, so that a single replica is away meanwhile."""
    drain_timeout_s: float | None = Field(default=None, ge=0)
    """Seconds that a replica which is to stop may go on with its requests; by default limits.request_timeout_s."""


class ModelConfig(StrictModel):
    """One served model."""

    name: str
    """A catalogue name (`phi-3-mini-4k-instruct`, or a spelling of it); or any name together with `source`."""
    source: str | None = None
    """Hub repository id or a local checkpoint directory; by default the catalogue's."""
    revision: str | None = None
    """Commit, tag or branch of a Hub source; by default the catalogue's pinned commit."""
    device: Device = "auto"
    """`auto` takes a GPU for the real variants and the CPU for phi-3-tiny; for other names a GPU where the
    cluster has one when the application is built."""
    dtype: Dtype = "auto"
    """`auto` is the checkpoint's own on a GPU (bfloat16 for Phi-3) and float32 on the CPU."""
    min_replicas: int = Field(default=1, ge=0)
    """Replicas that always run; 0 starts the first one when a request asks for it."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas at most; above min_replicas Ray Serve scales by the requests in flight."""
    num_cpus: float | None = Field(default=None, gt=0)
    """CPU cores that a replica reserves, and its torch threads; by default 2 beside a GPU, else 1."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs that a replica reserves; by default 1 on `cuda`, else 0."""
    accelerator_type: str | None = None
    """A GPU type of Ray's, `L4` or `A100` say, where only that will do."""
    defaults: GenerationParameters = NONE_GIVEN
    """Values of generate parameters for requests that do not give their own; they win over those of the API."""
    routing: Routing = "load"
    """`load` sends a request to the replica with fewer; `prefix` to the one that has the start of its prompt, or its
    session, in memory, unless that one has much more to do."""
    scaling: ScalingConfig = ScalingConfig()
    """When replicas are added and taken away."""
    health: HealthConfig = HealthConfig()
    """When a replica is replaced."""
    rollout: RolloutConfig = RolloutConfig()
    """How a new version takes over."""

    @field_validator("defaults", mode="before")
    @classmethod
    def _refuse_wrong_names(cls, given: Any) -> Any:
        return _without_refused(given)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not _NAME.fullmatch(self.name) or self.name == INGRESS_NAME:
            raise ValueError(
                f"name `{self.name}` must be letters, digits and . _ - / (at most 128), and not `{INGRESS_NAME}`"
            )
        if self.source is None and self.variant is None:
            hint = did_you_mean(self.name, [v.name for v in catalogue.VARIANTS], "")
            raise ValueError(
                f"`{self.name}` is not in the catalogue{f'{hint} Otherwise' if hint else ';'} "
                "give its `source`: a Hub repository id or a checkpoint directory"
            )
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas, which is {self.min_replicas}")
        return self

    @property
    def variant(self) -> catalogue.Variant | None:
        """The catalogue's entry, if the name spells one."""
        return catalogue.variant(self.name)

    @property
    def served_name(self) -> str:
        """The name that clients see: the catalogue's spelling, or the config's own."""
        return self.variant.name if self.variant is not None else self.name

    @property
    def checkpoint(self) -> str:
        """Where the weights come from."""
        if self.source is not None:
            return self.source
        assert self.variant is not None  # noqa: S101 - _check has refused this
        return self.variant.source

    @property
    def checkpoint_revision(self) -> str | None:
        """The pinned revision; the catalogue's only where the source is the catalogue's too."""
        if self.revision is not None or self.variant is None or self.source not in (None, self.variant.source):
            return self.revision
        return self.variant.revision


def _without_refused(given: Any) -> Any:
    """``given`` without nulls; a ValueError for what is not a generate parameter, or not one that is taken."""
    try:
        return refuse_by_name(given) if isinstance(given, dict) else given
    except InvalidRequest as error:
        raise ValueError(error.message) from None


class LimitsConfig(StrictModel):
    """What one request, and all of them together, may take."""

    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Largest request body; beyond it 413."""
    max_waiting_requests: int = Field(default=64, ge=0)
    """Requests that may wait in one replica beside the running ones; beyond it 429."""
    max_waiting_tokens: int = Field(default=2**18, ge=1)
    """Prompt tokens that the waiting requests of one replica may have together; beyond it 429."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Seconds that may pass between two pieces of a request body; beyond it 408."""
    queue_timeout_s: float | None = Field(default=None, gt=0)
    """Seconds that a request may wait in the replica before it is begun; beyond it 429. By default any number."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds from arrival in the replica to the last token; beyond it 408."""


class LiveConfig(StrictModel):
    """What `user_config` of a deployment may say; a change of it reaches the running replicas.

    `args` say the same for all models; a change of those starts every replica anew.
    """

    limits: LimitsConfig = LimitsConfig()
    """Those that are given here win over the ones of `args`."""
    defaults: GenerationParameters = NONE_GIVEN
    """Those that are given here win over the model's `defaults`; of no use to the ingress."""

    @field_validator("defaults", mode="before")
    @classmethod
    def _refuse_wrong_names(cls, given: Any) -> Any:
        return _without_refused(given)

    def over(self, limits: LimitsConfig) -> LimitsConfig:
        """``limits``, with those that are given here."""
        return limits.model_copy(update={name: getattr(self.limits, name) for name in self.limits.model_fields_set})


class ClusterConfig(StrictModel):
    """What the server may assume of the Ray cluster."""

    elastic: bool = False
    """True where an autoscaler adds nodes: a resource that no node has now is then waited for."""


class AuthConfig(StrictModel):
    """Who may ask."""

    key_hashes: tuple[str, ...] = ()
    """SHA-256, in hex, of each API key that is accepted; none: nobody is asked for one. `phi3-serve key` makes it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for number, key_hash in enumerate(self.key_hashes):
            if not re.fullmatch(r"[0-9a-f]{64}", key_hash):
                raise ValueError(
                    f"key_hashes[{number}] must be 64 hexadecimal digits, the SHA-256 of a key; "
                    "`phi3-serve key` makes both"
                )
        return self


class HttpConfig(StrictModel):
    """The HTTP half."""

    num_cpus: float = Field(default=0.5, gt=0)
    """CPU cores that an ingress replica reserves."""
    replicas: int = Field(default=1, ge=1)
    """Ingress replicas."""
    cors_origins: tuple[str, ...] = ()
    """Web origins, `https://chat.example.org` say, whose pages may call this server; by default none but its own."""


def _every_variant() -> tuple[ModelConfig, ...]:
    return tuple(ModelConfig(name=v.name, min_replicas=0 if v.needs_gpu else 1) for v in catalogue.VARIANTS)


class AppConfig(StrictModel):
    """Everything that ``args`` of the Serve config may say."""

    default_model: str | None = None
    """The model of a request that names none; by default the first of `models`."""
    models: tuple[ModelConfig, ...] = Field(default_factory=_every_variant)
    """The served models; by default the whole catalogue, the real variants scaled to zero."""
    limits: LimitsConfig = LimitsConfig()
    """Limits on requests."""
    cluster: ClusterConfig = ClusterConfig()
    """Facts about the cluster."""
    auth: AuthConfig = AuthConfig()
    """API keys."""
    http: HttpConfig = HttpConfig()
    """The ingress."""

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


def is_local(source: str) -> bool:
    """Whether ``source`` means a directory rather than a Hub repository id (``owner/name``)."""
    return Path(source).expanduser().is_dir() or not _HUB_ID.fullmatch(source)
