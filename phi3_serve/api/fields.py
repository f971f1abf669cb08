"""Fields that every wire format has: generate parameters by name, and numbers that are no booleans."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from phi3_serve import parameters
from phi3_serve.parameters import GenerationParameters

_TAKES_BOOL = frozenset(f.name for f in fields(GenerationParameters) if "bool" in str(f.type))


def number(name: str) -> BeforeValidator:
    """Refuse true and false for the number ``name``."""
    return BeforeValidator(lambda value: _refuse_boolean(value, name))


def _refuse_by_name(given: Any) -> Any:
    """Names before values, so that an unknown name is a 400 that knows the nearest one."""
    if not isinstance(given, dict):
        return given
    kept = parameters.refuse_by_name({str(name): value for name, value in given.items()})
    for name, value in kept.items():
        if name not in _TAKES_BOOL:
            _refuse_boolean(value, name)
    return kept


def _refuse_boolean(value: Any, name: str) -> Any:
    """A number is asked for, and Python counts True as 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_boolean", "`{name}` does not take true or false", {"name": name})
    return value


GenerateKwargs = Annotated[GenerationParameters, BeforeValidator(_refuse_by_name)]
