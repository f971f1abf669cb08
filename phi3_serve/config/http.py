"""The ingress."""

import re

from pydantic import Field, field_validator

from phi3_serve.config.ray_resources import as_labels, as_ray_amount
from phi3_serve.config.strict_model import StrictModel

# Of http and https a browser sends the host in small letters, and no port if it is the usual one.
_ORIGIN = re.compile(
    r"\*|null|(?!http://.*:80$|https://.*:443$)https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::\d{1,5})?"
    r"|(?!https?:)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(?::\d{1,5})?"
)


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
        return as_ray_amount(given)

    @field_validator("label_selector")
    @classmethod
    def _check_labels(cls, given: dict[str, str]) -> dict[str, str]:
        return as_labels(given)
