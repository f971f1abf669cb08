"""The base of all models of the configuration."""

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from phi3_serve.errors import did_you_mean


def unknown_key_message(key: str, valid: list[str]) -> str:
    """The error text for a key that does not exist."""
    return f"unknown key `{key}`" + did_you_mean(key, valid, f"; valid keys: {', '.join(valid)}")


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
        """Without this, true would be taken for 1."""
        if isinstance(given, bool) and info.field_name is not None:
            wanted = cls.model_fields[info.field_name].annotation
            types = {wanted, *get_args(wanted)}
            if types & {int, float} and bool not in types:
                raise ValueError("must be a number, not true or false")
        return given
