"""What a JSON schema says, in words."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]


def takes(schema: Schema) -> str:
    """In words, which values a field takes; null, which is always the same as leaving it out, is not mentioned."""
    if (name := referred(schema)) is not None:
        return name
    if forms := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(takes(form) for form in forms if form.get("type") != "null") or "null"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = _KINDS.get(schema.get("type", ""))
    return "anything" if kind is None else kind(schema)


def _number(schema: Schema) -> str:
    word = "whole number" if schema["type"] == "integer" else "number"
    low = f"at least {_digits(schema['minimum'])}" if "minimum" in schema else ""
    low = f"above {_digits(schema['exclusiveMinimum'])}" if "exclusiveMinimum" in schema else low
    high = f"at most {_digits(schema['maximum'])}" if "maximum" in schema else ""
    high = f"below {_digits(schema['exclusiveMaximum'])}" if "exclusiveMaximum" in schema else high
    return ", ".join(part for part in (word, low, high) if part)


def _digits(bound: float) -> str:
    """A whole number has all of them, because a bound may be 2**63. In the OpenAPI document it is a float."""
    return str(int(bound)) if float(bound).is_integer() else f"{bound:.10g}"


def _string(schema: Schema) -> str:
    return "text" + _counted(schema, "Length", "characters")


def _array(schema: Schema) -> str:
    if "prefixItems" in schema:
        return f"[{'; '.join(takes(item) for item in schema['prefixItems'])}]"
    return f"list{_counted(schema, 'Items', 'items')} of {takes(schema.get('items', {}))}"


def _object(schema: Schema) -> str:
    values = schema.get("additionalProperties")
    counted = "object" + _counted(schema, "Properties", "items")
    return f"{counted} of {takes(values)}" if isinstance(values, dict) and values else counted


def _counted(schema: Schema, what: str, unit: str) -> str:
    low, high = schema.get(f"min{what}"), schema.get(f"max{what}")
    if not high:
        return f" ({low} {unit} or more)" if low else ""
    return f" ({low or 0} to {high} {unit})"


_KINDS: Mapping[str, Callable[[Schema], str]] = {
    "integer": _number,
    "number": _number,
    "string": _string,
    "boolean": lambda _: "`true` or `false`",
    "array": _array,
    "object": _object,
    "null": lambda _: "null",
}


def referred(schema: Schema) -> str | None:
    """The name of the object that the schema refers to; None if it says all itself."""
    name = schema.get("$ref", "").rsplit("/", 1)[-1]
    return name or None
