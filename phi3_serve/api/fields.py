"""Types of fields that every API has: generate parameters by name, and numbers that refuse true and false."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from phi3_serve import parameters
from phi3_serve.parameters import GenerationParameters

_BOOLEAN_PARAMETERS = frozenset(f.name for f in fields(GenerationParameters) if "bool" in str(f.type))


def number(name: str) -> BeforeValidator:
    """A validator that refuses true and false for the number ``name``."""
    return BeforeValidator(lambda value: _refuse_boolean(value, name))


def _check_parameters(given: Any) -> Any:
    """Check names before types: an unknown name gets an error that says the nearest name."""
    if not isinstance(given, dict):
        return given
    accepted = parameters.refuse_by_name({str(name): value for name, value in given.items()})
    for name, value in accepted.items():
        if name not in _BOOLEAN_PARAMETERS:
            _refuse_boolean(value, name)
    return accepted


def _refuse_boolean(value: Any, name: str) -> Any:
    """Pydantic would take True for 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_boolean", "`{name}` does not take true or false", {"name": name})
    return value


GenerateKwargs = Annotated[GenerationParameters, BeforeValidator(_check_parameters)]
