"""Defaults of generate parameters that an operator gives."""

from typing import Any

from phi3_serve.errors import InvalidRequest
from phi3_serve.parameter_defaults import CHAT_DEFAULTS
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters
from phi3_serve.refused_parameters import refuse_by_name
from phi3_serve.resolved_parameters import resolve


def without_refused(given: Any) -> Any:
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
