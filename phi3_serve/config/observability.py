"""The log and the traces of requests."""

import re
from typing import Literal

from pydantic import Field, field_validator

from phi3_serve.config.strict_model import StrictModel


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
