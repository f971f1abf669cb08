"""Limits that may change while the server runs."""

from dataclasses import dataclass

from phi3_serve.config.limits import LimitsConfig


@dataclass(slots=True)
class CurrentLimits:
    """The limits in force. Each request reads ``current`` again."""

    current: LimitsConfig
