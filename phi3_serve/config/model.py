"""A served model: its checkpoint, its device and its replicas."""

import datetime
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from phi3_serve import catalogue
from phi3_serve.config.adapter import AdapterConfig, with_unique_names
from phi3_serve.config.defaults import without_refused
from phi3_serve.config.model_name import problem_of_model_name
from phi3_serve.config.ray_resources import as_labels, as_ray_amount
from phi3_serve.config.replicas import HealthConfig, RolloutConfig, ScalingConfig
from phi3_serve.config.strict_model import StrictModel
from phi3_serve.errors import did_you_mean
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4", "fp8", "auto"]
KvCacheDtype = Literal["auto", "int8", "fp8"]
Routing = Literal["load", "prefix"]


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
    T4), float32 on the CPU, where weights of 16 bits stay as they are."""
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
    """Values of generate parameters for requests that give none. They override the defaults of the API. Those of the
    `user_config` are added, so contradictions are found when both are known."""
    adapters: tuple[AdapterConfig, ...] = ()
    """LoRA adapters. A change of those that requests name restarts nothing."""
    adapter_memory_bytes: int = Field(default=2 * 2**30, ge=0)
    """Main memory of a replica for adapters that requests name. Beyond it, the adapter that was not used for the
    longest time is dropped, and read again when a request names it. The last one stays, whatever its size."""
    gpu_adapter_memory_bytes: int | None = Field(default=None, ge=0)
    """Memory of a GPU for the adapters of running requests; by default 3 % of the GPU, or none if that made steps
    smaller. It is kept free of the key-value cache and allocated when the first adapter is loaded. On a CPU it has no
    effect."""
    cuda_graphs: bool = True
    """Whether a GPU replays steps as CUDA graphs. `false` launches their kernels one by one, which is slower: for a
    card or a driver on which a graph goes wrong. On a CPU it has no effect."""
    flash_attention: bool = True
    """Whether torch's FlashAttention-2 computes the attention of long chunks of prompts on a GPU, where a trial at load
    finds it faster. With `false` the Triton kernel computes all. On a CPU it has no effect."""
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
        return as_ray_amount(given)

    @field_validator("label_selector")
    @classmethod
    def _check_labels(cls, given: dict[str, str]) -> dict[str, str]:
        return as_labels(given)

    @field_validator("adapters")
    @classmethod
    def _check_adapters(cls, given: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
        return with_unique_names(given)

    @field_validator("num_gpus")
    @classmethod
    def _check_whole(cls, given: float | None) -> float | None:
        if given is not None and given > 1 and given % 1:
            raise ValueError(f"must be a whole number if it is above 1, and is {given:g}")
        return given

    @field_validator("defaults", mode="before")
    @classmethod
    def _refuse_wrong_names(cls, given: Any) -> Any:
        return without_refused(given)

    @field_validator("reload", mode="before")
    @classmethod
    def _accept_numbers(cls, given: Any) -> Any:
        if isinstance(given, datetime.date):
            raise ValueError("must be text; write a date in quotes")
        return str(given) if isinstance(given, int) and not isinstance(given, bool) else given

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problem := problem_of_model_name(self.name):
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
