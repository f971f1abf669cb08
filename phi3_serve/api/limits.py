"""What may change while the server runs."""

from dataclasses import dataclass

from phi3_serve.config import LimitsConfig


@dataclass(slots=True)
class CurrentLimits:
    """The limits in force; every request reads them anew."""

    current: LimitsConfig
