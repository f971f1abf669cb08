"""The bodies of every API whose generate parameters may be fields of their own."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Self

from pydantic import BaseModel, GetJsonSchemaHandler, PrivateAttr, TypeAdapter, model_validator
from pydantic import ModelWrapValidatorHandler as Handler

from phi3_serve.api.fields import GenerateKwargs
from phi3_serve.api.parameter_names import KWARGS, OTHER_NAMES, given_parameters, is_name
from phi3_serve.parameters import NAMES, GenerationParameters

OF_PARAMETER = "x-parameter"
"""In the JSON schema of a body: the generate parameter that a field sets."""


class BodyWithParameters(BaseModel):
    """A body whose generate parameters may be fields of their own, or in its ``generate_kwargs``.

    All of them are put into ``generate_kwargs``, besides those that the schema declares as fields.
    """

    generate_kwargs: GenerateKwargs | None = None
    """Generate parameters by name."""
    _names: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _unknown: Sequence[str] = PrivateAttr(default=())
    _has_null_kwargs: bool = PrivateAttr(default=False)

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it."""
        return self._names

    @property
    def unknown_fields(self) -> Sequence[str]:
        """Fields that had no effect, because nothing knows them."""
        return self._unknown

    @property
    def has_null_kwargs(self) -> bool:
        """Whether ``generate_kwargs`` was sent as null."""
        return self._has_null_kwargs

    @model_validator(mode="wrap")
    @classmethod
    def _gather(cls, body: Any, handler: Handler[Self]) -> Self:
        if not isinstance(body, dict):
            return handler(body)
        fields = cls.model_fields
        given = given_parameters(body, fields)
        unknown = cls.refuse_fields(body)
        rest = {name: value for name, value in body.items() if name in fields or not is_name(name)}
        in_kwargs = body.get(KWARGS)
        if isinstance(in_kwargs, dict) or (in_kwargs is None and given.values):
            rest[KWARGS] = given.values
        validated = handler(rest)
        validated._unknown, validated._has_null_kwargs = unknown, KWARGS in body and in_kwargs is None
        validated._names = {parameter: place[-1] for parameter, place in given.places.items()}
        return validated

    @classmethod
    def refuse_fields(cls, body: Mapping[str, Any]) -> Sequence[str]:
        """The fields of ``body`` that nothing knows and this API takes nevertheless.

        Raises:
            InvalidRequest: this API does not take a field.
        """
        return ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The declared fields, and one for each name of a generate parameter."""
        schema = handler(core_schema)
        properties: dict[str, Any] = handler.resolve_ref_schema(schema)["properties"]
        for name, of_name in _schemas().items():
            properties.setdefault(name, of_name)
        return schema


@cache
def _schemas() -> Mapping[str, Mapping[str, Any]]:
    """The JSON schema of each name of a generate parameter."""
    by_name: dict[str, Any] = TypeAdapter(GenerationParameters).json_schema()["properties"]
    schemas = {name: {**by_name[name], OF_PARAMETER: name} for name in NAMES}
    for name, other in OTHER_NAMES.items():
        about = schemas[name]["description"] if name in NAMES else f"Another name of {other.parameter}."
        of_value = other.schema or by_name[other.parameter]
        schemas[name] = {**of_value, "description": f"{about} {other.note}".strip(), OF_PARAMETER: other.parameter}
    return schemas
