"""The configuration: ``args`` of ``serve_config.yaml`` as one frozen model."""

import datetime
import re
from collections import Counter
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from phi3_serve import catalogue
from phi3_serve.core.adapter import MAX_ADAPTER_STRENGTH, OfferedAdapter
from phi3_serve.errors import InvalidRequest, did_you_mean
from phi3_serve.parameters import CHAT_DEFAULTS, NONE_GIVEN, GenerationParameters, refuse_by_name
from phi3_serve.resolved_parameters import resolve

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4", "fp8", "auto"]
KvCacheDtype = Literal["auto", "int8", "fp8"]
Routing = Literal["load", "prefix"]
KeyScope = Literal["generate", "metrics"]

INGRESS_NAME = "ingress"
_API_PREFIXES = {"v1": "OpenAI's", "api": "ollama's"}  # of the paths of an API, and whose it is
_MAX_NAME_LENGTH = 128
_NAME = re.compile(rf"[A-Za-z0-9._/-]{{1,{_MAX_NAME_LENGTH}}}")
_PART_OF_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL.pattern}")
_LABEL_RULE = "at most 63 letters, digits and . _ -, with a letter or a digit at both ends"
# Of http and https a browser sends the host in small letters, and no port if it is the usual one.
_ORIGIN = re.compile(
    r"\*|null|(?!http://.*:80$|https://.*:443$)https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::\d{1,5})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(?::\d{1,5})?"
)
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


def deployment_name(model: str) -> str:
    """The Serve deployment of a model. Ray allows no slash in it.

    No two names give the same deployment, because ``ModelConfig`` refuses a name with ``--``.
    """
    return model.replace("/", "--")


def _problem_of_name(name: str) -> str | None:
    """Why ``name`` cannot be a model's name; None if it can. It becomes a part of URLs and the name of a deployment."""
    parts = name.split("/")
    if not _NAME.fullmatch(name):
        return "must be 1 to 128 letters, digits and . _ - /"
    if not all(map(_PART_OF_NAME.fullmatch, parts)):
        return "must begin and end with a letter or a digit, and so must each part between slashes"
    if "--" in name:
        return "must not have --, which is written for a slash in the name of its deployment"
    if len(deployment_name(name)) > _MAX_NAME_LENGTH:  # Ray's log files have it in their names
        return f"must have at most {_MAX_NAME_LENGTH} characters, each slash counted twice"
    if name == INGRESS_NAME:
        return "is the name of the deployment that receives HTTP"
    if (whose := _API_PREFIXES.get(parts[0])) is not None:
        return f"must not be {parts[0]} or begin with {parts[0]}/, as the paths of {whose} API do"
    return None


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
    """When replicas are added and removed. It has an effect only with max_replicas above min_replicas."""

    target_load: float | None = Field(default=None, gt=0)
    """Running and waiting requests per replica above which another replica starts; by default three quarters of the
    rows of a batch: 192 on a GPU, 96 on a CPU. A need of 35 % of the key-value caches starts another one, too."""
    upscale_delay_s: float = Field(default=10.0, ge=0)
    """Seconds above target_load before a replica is added. The first replica of a sleeping model starts at once."""
    downscale_delay_s: float = Field(default=600.0, ge=0)
    """Seconds below target_load before a replica is removed."""
    sleep_after_s: float | None = Field(default=None, ge=0)
    """Idle seconds before the last replica stops; by default downscale_delay_s. Only with min_replicas 0."""
    look_back_s: float = Field(default=15.0, gt=0)
    """Seconds over which the load is averaged; above 10, because replicas report it every 10 s."""


class HealthConfig(StrictModel):
    """When a replica counts as broken and is replaced."""

    check_period_s: float = Field(default=10.0, gt=0)
    """Seconds between two checks."""
    check_timeout_s: float = Field(default=30.0, gt=0)
    """Timeout of one check in seconds. Three failed checks end the replica."""
    stuck_after_s: float = Field(default=300.0, gt=0)
    """Seconds after which one step of the engine counts as hung."""


class RolloutConfig(StrictModel):
    """How a new version replaces an old one."""

    max_surge_percent: int | None = Field(default=None, ge=0, le=100)
    """New replicas that may start before old ones stop, in percent of the replicas. By default 100 on a CPU. By default
    0 on a GPU, because the old replica holds the GPU; a single replica then does not answer during a rollout."""
    drain_timeout_s: float | None = Field(default=None, ge=0)
    """Seconds for which a stopping replica may finish its requests; by default limits.request_timeout_s."""


class AdapterConfig(StrictModel):
    """A LoRA adapter, as PEFT saves it: `adapter_config.json` and `adapter_model.safetensors`."""

    name: str
    """The name in requests: at most 64 letters, digits and . _ -, with a letter or a digit at both ends."""
    source: str = Field(min_length=1)
    """A directory, or a Hub repository id."""
    revision: str | None = None
    """Commit, tag or branch of a Hub source."""
    strength: float = Field(default=1.0, ge=0, le=MAX_ADAPTER_STRENGTH)
    """What the change that the adapter makes is multiplied with, unless a request gives its own strength."""
    always: bool = False
    """true: the adapter is merged into the weights while the model is loaded. It applies to every request and costs
    nothing, and requests cannot name it. false: requests name it."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, given: str) -> str:
        if not _ADAPTER_NAME.fullmatch(given):
            raise ValueError(
                f"must be at most 64 letters, digits and . _ -, with a letter or a digit at both ends, and is `{given}`"
            )
        if given == "latest":
            raise ValueError("must not be `latest`, which is ollama's tag of the model itself")
        return given

    @property
    def offered(self) -> OfferedAdapter:
        """What the ingress needs to know of it."""
        return OfferedAdapter(self.name, self.source, self.strength, self.revision)


def _with_unique_names(given: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
    if doubled := [name for name, count in Counter(adapter.name for adapter in given).items() if count > 1]:
        raise ValueError(f"two adapters have the name `{doubled[0]}`")
    return given


class ModelConfig(StrictModel):
    """One served model."""

    name: str
    """A catalogue name (`phi-3-mini-4k-instruct` or a spelling of it), or any name together with `source`: at most 128
    letters, digits and . _ - /, without --. Each part between slashes begins and ends with a letter or a digit."""
    source: str | None = Field(default=None, min_length=1)
    """Hub repository id, a local checkpoint directory or a GGUF file; by default the catalogue's."""
    file: str | None = None
    """The GGUF file of the source, if it is a repository or a directory with several."""
    revision: str | None = None
    """Commit, tag or branch of a Hub source; by default the catalogue's pinned commit."""
    device: Device = "auto"
    """`auto`: a GPU for the real variants, the CPU for phi-3-tiny. Other names get a GPU if the cluster has one
    when the application is built, or if `cluster.elastic` is true. Otherwise they get the CPU, and `/ready` and the log
    say so."""
    dtype: Dtype = "auto"
    """`auto`: the dtype of the checkpoint on a GPU (bfloat16 for Phi-3; float16 if the GPU has no bfloat16, such as a
    T4), float32 on the CPU."""
    quantization: Quantization = "none"
    """Bits of the weights in memory; they are rounded while a checkpoint is loaded. `int8`: 8 bits. `int4`: 4 bits, and
    8 for the embedding and the head. `fp8`: 8 bits, on a GPU of compute capability 8.9 or higher, which also rounds the
    activations. `auto`: none, int8 or int4, as the free memory of the device allows; `/ready` says which."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """Bits of the keys and values of attention in memory. `auto`: as the model computes. `int8`: 8 bits, on any device.
    `fp8`: 8 bits, on a GPU of compute capability 8.9 or higher. With 8 bits the cache holds more tokens, and answers
    change a little."""
    min_replicas: int = Field(default=1, ge=0)
    """Replicas that always run. With 0 the first one starts at the first request."""
    max_replicas: int = Field(default=1, ge=1)
    """Maximum number of replicas. Above min_replicas, Ray Serve scales by the requests in flight."""
    num_cpus: float | None = Field(default=None, gt=0)
    """CPU cores that a replica reserves, and its torch threads; by default 2 with a GPU, otherwise 1."""
    num_gpus: float | None = Field(default=None, ge=0)
    """GPUs that a replica reserves; by default 1 on `cuda`, otherwise 0. Above 1, a whole number."""
    accelerator_type: str | None = Field(default=None, min_length=1)
    """A GPU type of Ray, for example `L4` or `A100`, if the replica needs this type."""
    label_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of Ray, each with the value that the node of a replica must have."""
    defaults: GenerationParameters = NONE_GIVEN
    """Values of generate parameters for requests that give none. They override the defaults of the API."""
    adapters: tuple[AdapterConfig, ...] = ()
    """LoRA adapters. A change of those that requests name restarts nothing."""
    adapter_memory_bytes: int = Field(default=2 * 2**30, ge=0)
    """Main memory of a replica for adapters that requests name. Beyond it, the adapter that was not used for the
    longest time is dropped, and read again when a request names it. The last one stays, whatever its size."""
    gpu_adapter_memory_bytes: int | None = Field(default=None, ge=0)
    """Memory of a GPU for the adapters of running requests; by default 3 % of the GPU, or none if that made steps
    smaller. It is kept free of the key-value cache and allocated when the first adapter is loaded. On a CPU it has no
    effect."""
    routing: Routing = "load"
    """`load` sends a request to the replica with fewer requests. `prefix` sends it to the replica that has the start of
    its prompt, or its session, in memory, unless that replica has eight requests more than another. A request that
    names an adapter goes to the replica that has the adapter in memory, under the same condition. With `load`, this
    needs an adapter in `args`; one that only a `user_config` has does not suffice."""
    required: bool = False
    """Whether a replica must not start without its model. If so, the application is not RUNNING before the model is
    loaded, and KubeRay keeps the old cluster. Otherwise the application runs with the other models, and this one is
    tried again."""
    reload: str | None = None
    """Any text. A new value restarts the replicas of this model, which load it again."""
    scaling: ScalingConfig = ScalingConfig()
    """When replicas are added and taken away."""
    health: HealthConfig = HealthConfig()
    """When a replica is replaced."""
    rollout: RolloutConfig = RolloutConfig()
    """How a new version replaces an old one."""

    @field_validator("file")
    @classmethod
    def _check_file(cls, given: str | None) -> str | None:
        if given is not None and (not given.endswith(".gguf") or given.startswith("/") or ".." in given.split("/")):
            raise ValueError(f"must be the name of a .gguf file in the source, and is `{given}`")
        return given

    @field_validator("num_cpus", "num_gpus")
    @classmethod
    def _check_precision(cls, given: float | None) -> float | None:
        return _as_ray_counts(given)

    @field_validator("label_selector")
    @classmethod
    def _check_labels(cls, given: dict[str, str]) -> dict[str, str]:
        return _as_labels(given)

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, given: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
        return _with_unique_names(given)

    @field_validator("num_gpus")
    @classmethod
    def _check_whole(cls, given: float | None) -> float | None:
        if given is not None and given > 1 and given % 1:
            raise ValueError(f"must be a whole number if it is above 1, and is {given:g}")
        return given

    @field_validator("defaults", mode="before")
    @classmethod
    def _refuse_wrong_names(cls, given: Any) -> Any:
        return _without_refused(given)

    @field_validator("defaults")
    @classmethod
    def _check_defaults(cls, given: GenerationParameters) -> GenerationParameters:
        if problem := problem_of_defaults(given):
            raise ValueError(problem)
        return given

    @field_validator("reload", mode="before")
    @classmethod
    def _accept_numbers(cls, given: Any) -> Any:
        if isinstance(given, datetime.date):
            raise ValueError("must be text; write a date in quotes")
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := _problem_of_name(self.name):
            raise ValueError(f"name `{self.name}` {problem}")
        if self.source is None and self.variant is None:
            hint = did_you_mean(self.name, [v.name for v in catalogue.VARIANTS], "")
            raise ValueError(
                f"`{self.name}` is not in the catalogue{f'{hint} Otherwise' if hint else ';'} "
                "give its `source`: a Hub repository id, a checkpoint directory or a GGUF file"
            )
        if self.file is not None and self.source is None:
            raise ValueError("file is given without `source`, and the catalogue's sources have no GGUF files")
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, below min_replicas, which is {self.min_replicas}")
        return self

    @property
    def variant(self) -> catalogue.Variant | None:
        """The catalogue's entry, if the name is a spelling of one."""
        return catalogue.variant(self.name)

    @property
    def served_name(self) -> str:
        """The name that clients see: the catalogue's spelling, or the config's own."""
        return self.variant.name if self.variant is not None else self.name

    @property
    def merged_adapters(self) -> tuple[AdapterConfig, ...]:
        """The adapters that apply to every request."""
        return tuple(adapter for adapter in self.adapters if adapter.always)

    @property
    def offered_adapters(self) -> tuple[AdapterConfig, ...]:
        """The adapters that requests may name, unless the `user_config` of the deployment has others."""
        return tuple(adapter for adapter in self.adapters if not adapter.always)

    @property
    def checkpoint(self) -> str:
        """Where the weights come from."""
        if self.source is not None:
            return self.source
        assert self.variant is not None  # noqa: S101 - _check has refused this
        return self.variant.source

    @property
    def checkpoint_revision(self) -> str | None:
        """The pinned revision. The catalogue's applies only to the catalogue's source."""
        if self.revision is not None or self.variant is None or self.source not in (None, self.variant.source):
            return self.revision
        return self.variant.revision


def _as_ray_counts(given: float | None) -> float | None:
    """``given``, an amount of a resource. Raises ValueError if Ray cannot reserve it."""
    if given is not None and round(given, 4) != given:
        raise ValueError(f"must have at most four decimal places, and is {given:g}")
    return given


def _as_labels(given: dict[str, str]) -> dict[str, str]:
    """``given``, labels of a node. Raises ValueError for what is not a label of Kubernetes, as Ray has them."""
    for key, value in given.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"`{key}` is not a label: {_LABEL_RULE}, and before it perhaps a domain and a slash")
        if not _LABEL.fullmatch(value):
            raise ValueError(f"the value of {key} is `{value}`, and must be {_LABEL_RULE}")
    return given


def _without_refused(given: Any) -> Any:
    """``given`` without nulls. Raises ValueError for an unknown or unsupported parameter."""
    try:
        return refuse_by_name(given) if isinstance(given, dict) else given
    except InvalidRequest as error:
        raise ValueError(error.message) from None


_SOME_END = GenerationParameters(eos_token_id=0)  # that of the checkpoint is not known here


def problem_of_defaults(defaults: GenerationParameters) -> str | None:
    """Why a request that sets nothing would be refused with ``defaults``; None if it would not.

    The defaults of all APIs sample, as those of KAITO do.
    """
    try:
        resolve(NONE_GIVEN, defaults, CHAT_DEFAULTS, _SOME_END)
    except InvalidRequest as error:
        return error.message
    return None


class QueueLimitsConfig(StrictModel):
    """Limits of the queue of a replica."""

    max_waiting_requests: int = Field(default=64, ge=0)
    """Maximum number of waiting requests in a replica, without the running ones; more get 429."""
    max_waiting_tokens: int = Field(default=2**18, ge=1)
    """Maximum number of prompt tokens of all waiting requests in a replica; more get 429."""


class LimitsConfig(QueueLimitsConfig):
    """Limits on one request, and on all requests together."""

    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Maximum size of a request body; a larger one gets 413."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """Maximum seconds between two pieces of a request body; then 408."""
    queue_timeout_s: float | None = Field(default=None, gt=0)
    """Maximum seconds that a request waits in the replica before it starts; then 429. By default no limit for a stream,
    and 50 s for a plain request, or as long as its header `Prefer: wait` says."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Maximum seconds from arrival in the replica to the last token; then 408."""

    @property
    def of_queue(self) -> QueueLimitsConfig:
        """The limits that a replica applies itself."""
        return QueueLimitsConfig(
            max_waiting_requests=self.max_waiting_requests, max_waiting_tokens=self.max_waiting_tokens
        )


class ApiKeyConfig(StrictModel):
    """One API key with its scopes and limits. Each ingress replica counts for itself."""

    name: str
    """The name in metrics and in errors: letters, digits and . _ - (at most 64). It is not secret."""
    hash: str
    """SHA-256 of the key in hex. `phi3-serve key` makes both."""
    scopes: tuple[KeyScope, ...] = ("generate", "metrics")
    """`generate` allows every POST, `metrics` allows `GET /metrics`. Other routes are open to every key."""
    max_parallel_requests: int | None = Field(default=None, ge=1)
    """Maximum number of requests at once; more get 429. By default no limit."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Maximum number of prompt and generated tokens a minute; more get 429. By default no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := problem_of_key_name(self.name):
            raise ValueError(problem)
        _check_hash(self.hash, "hash")
        return self


def problem_of_key_name(name: str) -> str | None:
    """Why ``name`` cannot be that of an API key; None if it can."""
    return None if _KEY_NAME.fullmatch(name) else "name must be letters, digits and . _ - (at most 64)"


def _check_hash(value: str, field: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{field} must be 64 hexadecimal digits, the SHA-256 of a key; `phi3-serve key` makes both")


class AuthConfig(StrictModel):
    """API keys. Without any, no key is needed."""

    key_hashes: tuple[str, ...] = ()
    """SHA-256 in hex of each API key that has all scopes and no limit. `phi3-serve key` makes one."""
    keys: tuple[ApiKeyConfig, ...] = ()
    """API keys with a name, scopes and limits."""
    file: str | None = None
    """An absolute path of a YAML file with `key_hashes` and `keys`, such as a mounted Secret. Its keys are accepted
    besides those here. A change of it is noticed within seconds. With a file, every request needs a key, even if the
    file has none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.file is not None and not self.file.startswith("/"):
            raise ValueError(f"file must be an absolute path, and is {self.file!r}")
        for number, key_hash in enumerate(self.key_hashes):
            _check_hash(key_hash, f"key_hashes[{number}]")
        for field in ("name", "hash"):
            values = Counter(getattr(key, field) for key in self.all_keys)
            if doubled := [value for value, count in values.items() if count > 1]:
                raise ValueError(f"two API keys have the {field} `{doubled[0]}`")
        return self

    @property
    def all_keys(self) -> tuple[ApiKeyConfig, ...]:
        """Every key. One without a name is named after the start of its hash."""
        unnamed = [ApiKeyConfig(name=key_hash[:8], hash=key_hash) for key_hash in self.key_hashes]
        return (*unnamed, *self.keys)


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
        return _without_refused(given)

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, given: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
        if merged := [adapter.name for adapter in given if adapter.always]:
            raise ValueError(
                f"`{merged[0]}` has `always`, which restarts the replicas and is possible in `args` only; "
                "leave it out to offer the adapter by name"
            )
        return _with_unique_names(given)


class LiveIngressConfig(LiveConfig):
    """`user_config` of the deployment `ingress`."""

    auth: AuthConfig | None = None
    """The API keys; they replace all keys of `args`."""


class ClusterConfig(StrictModel):
    """Properties of the Ray cluster."""

    elastic: bool = False
    """Whether an autoscaler adds nodes. If so, requests wait for a resource that no node has now, and `device: auto` of
    a model outside the catalogue is a GPU."""


class HttpConfig(StrictModel):
    """The ingress."""

    num_cpus: float = Field(default=0.0, ge=0)
    """CPU cores that an ingress replica reserves. With 0 it always finds a node, also if models hold all cores."""
    replicas: int = Field(default=1, ge=1)
    """Ingress replicas."""
    label_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of Ray, each with the value that the node of an ingress replica must have."""
    cors_origins: tuple[str, ...] = ()
    """Other web origins whose pages may call this server, for example `https://chat.example.org`; by default none."""

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        """A browser sends the origin without a path, and compares it letter by letter."""
        if wrong := [origin for origin in given if not _ORIGIN.fullmatch(origin)]:
            raise ValueError(
                f"`{wrong[0]}` is not an origin as browsers send it: https:// or the like, a name in small letters, a "
                "port if it is not the usual one, and no / at the end; or * for all, or null"
            )
        return given

    @field_validator("num_cpus")
    @classmethod
    def _check_precision(cls, given: float) -> float | None:
        return _as_ray_counts(given)

    @field_validator("label_selector")
    @classmethod
    def _check_labels(cls, given: dict[str, str]) -> dict[str, str]:
        return _as_labels(given)


class LogsConfig(StrictModel):
    """The log of requests. It never has prompts or answers."""

    requests: Literal["auto", "json", "text", "off"] = "auto"
    """One line for each POST, in `requests_*.log` beside the logs of Ray Serve. `json`: JSON. `text`: words. `auto`:
    JSON, or words where the log goes to a terminal. `off`: none."""


class TracesConfig(StrictModel):
    """Traces by OpenTelemetry."""

    endpoint: str | None = None
    """The URL of a collector that takes OTLP over HTTP, for example `http://collector:4318`; by default there are no
    traces. They need `pip install 'phi3-serve[otel]'`."""
    sampled: float = Field(default=1.0, ge=0, le=1)
    """Part of the traces that is sent. A trace that a client has begun (`traceparent`) follows the client."""

    @field_validator("endpoint")
    @classmethod
    def _check_url(cls, given: str | None) -> str | None:
        if given is not None and not re.match(r"https?://[^/\s]", given):
            raise ValueError(f"must be a URL with http:// or https://, and is {given!r}")
        return given


class BatchesConfig(StrictModel):
    """OpenAI's files and batches."""

    directory: str | None = None
    """An absolute path, where files and batches are kept. Ingress replicas on several nodes need a directory that they
    share. By default there are no files and batches, and their routes answer 404."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Maximum part of the requests that a model computes at once that may be of batches. They never wait in a queue, so
    they take only what other requests leave."""
    max_file_bytes: int = Field(default=200 * 2**20, ge=1024)
    """Maximum size of an uploaded file; a larger one gets 413."""
    max_requests: int = Field(default=50_000, ge=1)
    """Maximum number of requests of a batch."""
    max_directory_bytes: int = Field(default=10 * 2**30, ge=1024)
    """Maximum size of all files together. Beyond it, uploads and new batches get 400; running batches go on."""
    keep_days: float = Field(default=30.0, gt=0, le=36_500)
    """Days after which a file is deleted, unless the client has chosen it, and an ended batch is forgotten."""

    @field_validator("directory")
    @classmethod
    def _check_absolute(cls, given: str | None) -> str | None:
        if given is not None and not given.startswith(("/", "~")):
            raise ValueError(f"must be an absolute path, and is {given!r}")
        return given


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
