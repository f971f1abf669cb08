"""The base of all models of the configuration."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from phi3_serve.errors import did_you_mean


def unknown_key_message(key: str, valid: list[str]) -> str:
    """The error text for a key that does not exist."""
    return f"unknown key `{key}`" + did_you_mean(key, valid, f"; valid keys: {', '.join(valid)}")


def problem_of_boolean(given: Any, wanted: Any) -> str | None:
    """Why ``given`` must not stand where the annotation ``wanted`` is; pydantic would take true for 1."""
    types = {wanted, *get_args(wanted)}
    is_wrong = isinstance(given, bool) and types & {int, float} and bool not in types
    return "must be a number, not true or false" if is_wrong else None


class StrictModel(BaseModel):
    """Frozen, and refuses unknown keys by name with the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            valid = list(cls.model_fields)
            if unknown := [str(key) for key in data if key not in cls.model_fields]:
                raise ValueError(unknown_key_message(unknown[0], valid))
        return data

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_for_numbers(cls, given: Any, info: ValidationInfo) -> Any:
        if info.field_name is not None and (
            problem := problem_of_boolean(given, cls.model_fields[info.field_name].annotation)
        ):
            raise ValueError(problem)
        return given
