"""A LoRA adapter of a model."""

import re
from collections import Counter

from pydantic import Field, field_validator

from phi3_serve.config.strict_model import StrictModel
from phi3_serve.core.adapter import MAX_ADAPTER_STRENGTH, OfferedAdapter

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


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


def with_unique_names(given: tuple[AdapterConfig, ...]) -> tuple[AdapterConfig, ...]:
    """``given``. Raises ValueError if two have the same name."""
    if doubled := [name for name, count in Counter(adapter.name for adapter in given).items() if count > 1]:
        raise ValueError(f"two adapters have the name `{doubled[0]}`")
    return given
