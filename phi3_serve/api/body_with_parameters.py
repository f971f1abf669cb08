"""The bodies of every API whose generate parameters may be fields of their own."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, PrivateAttr, TypeAdapter, model_validator
from pydantic import ModelWrapValidatorHandler as Handler

from phi3_serve.api.adapters import RequestAdapters
from phi3_serve.api.given_parameters import KWARGS, given_parameters, is_name
from phi3_serve.api.other_names import OTHER_NAMES
from phi3_serve.api.refused_fields import not_a_field, unknown_fields
from phi3_serve.parameters import NAMES, NONE_GIVEN, GenerationParameters

OF_PARAMETER = "x-parameter"
"""In the JSON schema of a body: the generate parameter that a field sets."""


class BodyWithParameters(BaseModel):
    """A body whose generate parameters may be fields of their own, or in one object, its ``holder``.

    All of them are put into the holder, besides those that the schema declares as fields.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    holder: ClassVar[str] = KWARGS
    """The field with the object, which each API declares."""
    adapters: RequestAdapters | None = None
    """LoRA adapters, each a `name` and perhaps a `strength`, that change the model for this request. Their changes add
    up. One of the eight may be in the name of the model, behind a colon. `/v1/models` lists them."""
    _names: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _unknown: Sequence[str] = PrivateAttr(default=())
    _has_null_kwargs: bool = PrivateAttr(default=False)

    @property
    def parameters(self) -> GenerationParameters:
        """The generate parameters that are no fields of their own here."""
        given: GenerationParameters | None = getattr(self, self.holder)
        return given or NONE_GIVEN

    @property
    def names_sent(self) -> Mapping[str, str]:
        """Generate parameter → the name by which the client sent it; and fields that have one name.

        An answer that is too long for the context is an error of max_length, whichever length the client sent.
        """
        length = {"max_length": self._names["max_new_tokens"]} if "max_new_tokens" in self._names else {}
        return {"model": "model", "adapters": "adapters", **length, **self._names}

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
        fields, in_holder = cls.model_fields, body.get(cls.holder)
        if isinstance(in_holder, dict):
            in_holder = cls.known_parameters(in_holder)
            body = {**body, cls.holder: in_holder}
        given = given_parameters(body, fields, cls.holder)
        unknown = cls.refuse_fields(body)
        rest = {name: value for name, value in body.items() if name in fields or not is_name(name)}
        if isinstance(in_holder, dict) or (in_holder is None and given.values):
            rest[cls.holder] = given.values
        validated = handler(rest)
        validated._unknown, validated._has_null_kwargs = unknown, cls.holder in body and in_holder is None
        validated._names = given.names
        return validated

    @classmethod
    def known_parameters(cls, in_holder: Mapping[str, Any]) -> Mapping[str, Any]:
        """``in_holder`` without names that are no generate parameters and may be sent nevertheless.

        Raises:
            InvalidRequest: this API does not take a name.
        """
        return in_holder

    @classmethod
    def refuse_fields(cls, body: Mapping[str, Any]) -> Sequence[str]:
        """The fields of ``body`` that nothing knows and this API takes nevertheless: none, unless it overrides this.

        Raises:
            InvalidRequest: this API does not take a field.
        """
        for name in unknown_fields(body, cls.model_fields):
            raise not_a_field(name, cls.model_fields)
        return ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The declared fields, and one for each name of a generate parameter."""
        schema = handler(core_schema)
        properties: dict[str, Any] = handler.resolve_ref_schema(schema)["properties"]
        for name, of_name in _schemas().items():
            properties.setdefault(name, of_name)
        return schema


def schema_of(parameter: str) -> Mapping[str, Any]:
    """The JSON schema of the value of a generate parameter; empty if there is no such parameter."""
    return _schemas().get(parameter, {})


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
