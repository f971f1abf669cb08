"""Which values a request may have at a place, in words: the one text behind ``allowed:`` in every error of a field.

The words come from the JSON schema of what the route takes, so an error says what the OpenAPI document says.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Annotated, Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from phi3_serve.api.body_with_parameters import schema_of
from phi3_serve.api.given_parameters import OBJECTS
from phi3_serve.api.schema_words import Schema, takes

Place = tuple[str | int, ...]
"""Where a value is in a request: "body" or "query", then names of fields and indices of lists."""

# The beginning of the type of one of pydantic's errors → the types in JSON schema of the form that it is of.
_TYPES_OF_ERROR: Sequence[tuple[str, Sequence[str]]] = (
    ("int_", ("integer",)),
    ("float_", ("number",)),
    ("finite_", ("number",)),
    ("greater_", ("integer", "number")),
    ("less_", ("integer", "number")),
    ("string_", ("string",)),
    ("bool_", ("boolean",)),
    ("list_", ("array",)),
    ("too_", ("array", "object")),
)


def allowed_values(route: APIRoute, place: Place, error_type: str | None) -> str:
    """What may be sent to ``route`` at ``place``; empty if the message of an error says all of it itself.

    A field has all its forms. An item of a list has the form that ``error_type``, pydantic's type of an error, is of:
    the rest of the list has shown which form is meant. None: all forms.
    """
    if len(place) < 2:
        return ""
    forms = _values_at(_schema(route, place), place)
    if isinstance(place[-1], int) and error_type is not None:
        forms = _of_error(forms, error_type) or forms
    if all(_has_no_bounds(form) for form in forms):
        return ""
    return " or ".join(dict.fromkeys(takes(form) for form in forms))


def fields_of(route: APIRoute, place: Place) -> Sequence[str]:
    """The fields of the object at ``place``; empty if there may be objects of several kinds, or none."""
    if len(place) < 2:
        return ()
    schema = _schema(route, place)
    forms = [form for found in _values_at(schema, place) for form in _forms(found, schema.get("$defs", {}))]
    objects = [tuple(form["properties"]) for form in forms if form.get("properties")]
    return objects[0] if len(objects) == 1 else ()


def _schema(route: APIRoute, place: Place) -> Schema:
    """The JSON schema of what ``route`` takes in the part of a request that ``place`` begins with."""
    if place[0] == "body":
        of_body: Any = None if route.body_field is None else route.body_field.field_info.annotation
        return _schema_of_body(of_body)
    parameters = {one.alias: one.field_info for one in route.dependant.query_params}
    info = parameters.get(str(place[1]))
    return {"properties": {}} if info is None else {"properties": {place[1]: _schema_of_parameter(info)}}


@cache
def _schema_of_body(annotation: Any) -> Schema:
    return TypeAdapter(annotation).json_schema()


def _schema_of_parameter(info: Any) -> Schema:
    return TypeAdapter(Annotated[info.annotation, info]).json_schema()


def _values_at(schema: Schema, place: Place) -> list[Schema]:
    """The schemas of the value at ``place``: several, if a value around it has several forms."""
    definitions, found = schema.get("$defs", {}), [schema]
    for around, part in pairwise(place):
        if around in OBJECTS and isinstance(part, str) and (of_parameter := schema_of(part)):
            found = [of_parameter]  # also by the name of another server, which the schema of the object lacks
        else:
            forms = [form for outer in found for form in _forms(outer, definitions)]
            found = [inner for form in forms for inner in _inside(form, part)]
    return found


def _forms(schema: Schema, definitions: Schema) -> Iterator[Schema]:
    """The forms of a value, without references."""
    if "$ref" in schema:
        yield from _forms(definitions.get(schema["$ref"].rsplit("/", 1)[-1], {}), definitions)
    elif several := schema.get("anyOf", schema.get("oneOf")):
        for form in several:
            yield from _forms(form, definitions)
    else:
        yield schema


def _inside(form: Schema, part: str | int) -> Iterator[Schema]:
    """The schema of the item or field ``part`` of a value; none if the value has no such part."""
    if isinstance(part, str):
        inner = form.get("properties", {}).get(part, form.get("additionalProperties"))
    elif part < len(of_items := form.get("prefixItems", ())):
        inner = of_items[part]
    else:
        inner = form.get("items")
    if isinstance(inner, dict):
        yield inner


def _of_error(schemas: Sequence[Schema], error_type: str) -> list[Schema]:
    """The forms that an error of this type can be of."""
    types = next((of_error for start, of_error in _TYPES_OF_ERROR if error_type.startswith(start)), ())
    return [form for schema in schemas for form in schema.get("anyOf", [schema]) if form.get("type") in types]


def _has_no_bounds(schema: Schema) -> bool:
    """Whether a message such as "Input should be a valid string" says all that ``schema`` does."""
    if forms := schema.get("anyOf", schema.get("oneOf")):
        of_values = [form for form in forms if form.get("type") != "null"]
        return len(of_values) < 2 and all(map(_has_no_bounds, of_values))
    return "$ref" in schema or "const" in schema or "enum" in schema or takes(schema) in ("text", "object", _TRUTH)


_TRUTH = takes({"type": "boolean"})
