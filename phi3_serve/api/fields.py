"""Types of fields that every API has: generate parameters, numbers, and what a message cannot carry."""

from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from phi3_serve.api.other_names import OTHER_NAMES
from phi3_serve.parameters import GenerationParameters
from phi3_serve.refused_parameters import refuse_by_name

NOT_A_BOOLEAN = "not_a_boolean"
"""The type of pydantic's error for true or false in place of a number."""
_BOOLEAN_PARAMETERS = frozenset(f.name for f in fields(GenerationParameters) if "bool" in str(f.type))


def number(name: str) -> BeforeValidator:
    """A validator that refuses true and false for the number ``name``."""
    return BeforeValidator(lambda value: _refuse_boolean(value, name))


def null_is(default: bool) -> BeforeValidator:
    """A validator that takes null for ``default``, as KAITO's server did."""
    return BeforeValidator(lambda value: default if value is None else value, json_schema_input_type=bool | None)


def nothing(reason: str) -> BeforeValidator:
    """A validator that takes null and an empty list only; ``reason`` says why."""
    return BeforeValidator(lambda value: _refuse_something(value, reason))


def false(reason: str) -> BeforeValidator:
    """A validator that takes null and false only; ``reason`` says why."""
    return BeforeValidator(lambda value: _refuse_true(value, reason))


def _refuse_true(value: Any, reason: str) -> Any:
    if value is not None and value is not False:
        raise PydanticCustomError("not_offered", "This must be false: {reason}.", {"reason": reason})
    return value


def _check_parameters(given: Any) -> Any:
    """Check names before types: an unknown name gets an error that says the nearest name."""
    if not isinstance(given, dict):
        return given
    accepted = refuse_by_name({str(name): value for name, value in given.items()}, OTHER_NAMES)
    for name, value in accepted.items():
        if name not in _BOOLEAN_PARAMETERS:
            _refuse_booleans(value, name)
    return accepted


def _refuse_booleans(value: Any, name: str) -> None:
    """Refuse true and false, also in lists of any depth, such as those of token ids."""
    left: list[tuple[Any, tuple[int, ...]]] = [(value, ())]
    while left:
        one, indices = left.pop()
        if isinstance(one, list):
            left += [(item, (*indices, index)) for index, item in enumerate(one)]
        else:
            _refuse_boolean(one, name, indices)


def _refuse_boolean(value: Any, name: str, indices: tuple[int, ...] = ()) -> Any:
    """Pydantic would take True for 1. ``indices`` are those of the lists around the value."""
    if isinstance(value, bool):
        about = {"name": name, "indices": indices}
        raise PydanticCustomError(NOT_A_BOOLEAN, "`{name}` does not take true or false", about)
    return value


def _refuse_something(value: Any, reason: str) -> Any:
    if value is not None and value != []:
        raise PydanticCustomError("not_offered", "This must be null or empty: {reason}.", {"reason": reason})
    return value


def _refuse_silence(content: Any, given: ValidationInfo) -> Any:
    """OpenAI's schema has null for an assistant that has only called tools or refused."""
    if content is None and given.data.get("role") != "assistant":
        raise PydanticCustomError("missing", "Only an assistant's content may be null; here a text is required.")
    return content


OnlyAssistantMaySayNothing = AfterValidator(_refuse_silence)
GenerateKwargs = Annotated[GenerationParameters, BeforeValidator(_check_parameters)]
