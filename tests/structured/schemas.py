"""JSON schemas of the forms that the public JSON-Schema test suite has, drawn at random.

https://github.com/json-schema-org/JSON-Schema-Test-Suite, draft 2020-12.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Schema = dict[str, Any] | bool

FORMATS = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
PATTERNS = ("^a*$", "a+", "^[a-z]{2,5}$", r"^\d{3}-\d{4}$", "^(yes|no)?$", r"^\S+@\S+\.de$", "[0-9]", "^é+$")
NAMES = ("a", "b", "name", "first name", 'foo"bar', "é", "x/y", "$ref", "properties", "")


def drawn(seed: int) -> Iterator[Schema]:
    """Schemas without end."""
    draw = random.Random(seed)
    while True:
        yield _with_definitions(draw)


def of_suite(checkout: Path) -> Iterator[Schema]:
    """Every schema of a checkout of the test suite."""
    for file in sorted((checkout / "tests" / "draft2020-12").rglob("*.json")):
        for group in json.loads(file.read_text(encoding="utf-8")):
            yield group["schema"]


def _with_definitions(draw: random.Random) -> Schema:
    schema = _schema(draw, 0)
    if isinstance(schema, dict) and draw.random() < 0.3:
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    if isinstance(schema, dict) and draw.random() < 0.3:  # a list or a tree that refers to itself
        node = {
            "type": "object",
            "properties": {"value": _schema(draw, 2), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        places: list[dict[str, Any]] = [
            {"$ref": "#/$defs/node"},
            {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        ]
        return {"$defs": {"node": node, "other": _schema(draw, 2)}, **draw.choice(places)}
    return schema


def _schema(draw: random.Random, depth: int) -> Schema:
    leaves: list[Callable[[random.Random], Schema]] = [
        _string,
        _integer,
        _number,
        _enum,
        _const,
        _simple,
        _format,
        _pattern,
    ]
    branches: list[Callable[[random.Random, int], Schema]] = [
        _object,
        _object,
        _array,
        _tuple,
        _any_of,
        _one_of,
        _all_of,
        _map,
    ]
    if depth < 3 and draw.random() < (0.9 if depth == 0 else 0.4):
        schema = draw.choice(branches)(draw, depth + 1)
    else:
        schema = draw.choice(leaves)(draw)
    if isinstance(schema, dict) and draw.random() < 0.2:
        schema |= {
            "title": "a title",
            "description": "what it is",
            "default": None,
            "examples": [1],
            "deprecated": True,
        }
    return schema


def _string(draw: random.Random) -> Schema:
    least = draw.choice([0, 0, 1, 3])
    return {"type": "string", "minLength": least, "maxLength": least + draw.choice([0, 1, 5, 20])}


def _integer(draw: random.Random) -> Schema:
    low = draw.choice([-1000, -7, 0, 3, 99])
    bounds = draw.choice(
        [
            {},
            {"minimum": low},
            {"maximum": low},
            {"minimum": low, "maximum": low + draw.choice([0, 5, 1234])},
            {"exclusiveMinimum": low, "exclusiveMaximum": low + draw.choice([2, 50])},
            {"minimum": low, "maximum": low + 60, "multipleOf": draw.choice([2, 5, 7])},
        ]
    )
    return {"type": "integer", **bounds}


def _number(draw: random.Random) -> Schema:
    low = draw.choice([-1.5, 0, 0.25, 100])
    bounds = draw.choice([{}, {"minimum": low}, {"exclusiveMinimum": low, "maximum": low + 3}, {"multipleOf": 0.5}])
    return {"type": "number", **bounds}


def _value(draw: random.Random) -> Any:
    return draw.choice(
        [None, True, False, 0, -3, 2.5, "", "a", "foo\nbar", "é😀", 'q"\\', [], [1, "x"], {}, {"a": {"b": 1}}]
    )


def _enum(draw: random.Random) -> Schema:
    return {"enum": [_value(draw) for _ in range(draw.randint(1, 4))]}


def _const(draw: random.Random) -> Schema:
    return {"const": _value(draw)}


def _simple(draw: random.Random) -> Schema:
    types = ("null", "boolean", ["integer", "null"], ["string", "boolean"])
    schemas: list[Schema] = [True, {}, *({"type": type_} for type_ in types)]
    return draw.choice(schemas)


def _format(draw: random.Random) -> Schema:
    return {"type": "string", "format": draw.choice(FORMATS)}


def _pattern(draw: random.Random) -> Schema:
    return {"type": "string", "pattern": draw.choice(PATTERNS), **draw.choice([{}, {"maxLength": 12}])}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(NAMES, draw.randint(0, 4))
    required = [name for name in names if draw.random() < 0.6]
    schema: dict[str, Any] = {"properties": {name: _schema(draw, depth) for name in names}}
    if draw.random() < 0.9:
        schema["type"] = "object"
    if required:
        schema["required"] = required
    more = draw.choice([False, False, False, None, {"type": "integer"}])
    if more is not None:
        schema["additionalProperties"] = more
    return schema


def _map(draw: random.Random, depth: int) -> Schema:
    schema: dict[str, Any] = {"type": "object", "additionalProperties": _schema(draw, depth)}
    if draw.random() < 0.5:
        schema |= {"minProperties": draw.choice([0, 1]), "maxProperties": draw.choice([1, 2, 3])}
    elif draw.random() < 0.5:
        schema |= {"patternProperties": {"^x-": {"type": "string", "maxLength": 3}}, "additionalProperties": False}
    return schema


def _array(draw: random.Random, depth: int) -> Schema:
    least = draw.choice([0, 0, 1, 2])
    schema: dict[str, Any] = {"type": "array", "items": _schema(draw, depth)}
    return schema | draw.choice(
        [{}, {"minItems": least}, {"minItems": least, "maxItems": least + draw.choice([0, 1, 3])}]
    )


def _tuple(draw: random.Random, depth: int) -> Schema:
    items = [_schema(draw, depth) for _ in range(draw.randint(1, 3))]
    ends: list[dict[str, Any]] = [{"items": False}, {"items": {"type": "integer"}}, {}]
    return {"type": "array", "prefixItems": items, **draw.choice(ends), **draw.choice([{}, {"minItems": len(items)}])}


def _any_of(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(draw, depth) for _ in range(draw.randint(1, 3))]}


def _one_of(draw: random.Random, depth: int) -> Schema:
    kinds = draw.sample(["string", "integer", "null", "boolean"], draw.randint(1, 3))
    tagged = [
        {"type": "object", "properties": {"kind": {"const": kind}, "value": _schema(draw, depth)}, "required": ["kind"]}
        for kind in ("one", "other")
    ]
    return {
        "oneOf": draw.choice([[{"type": kind} for kind in kinds], tagged, [_schema(draw, depth) for _ in range(2)]])
    }


def _all_of(draw: random.Random, depth: int) -> Schema:
    return {
        "allOf": [
            {"type": "object", "properties": {"a": _schema(draw, depth)}, "required": ["a"]},
            {"properties": {"b": _schema(draw, depth)}, "required": draw.choice([[], ["b"]])},
        ],
        **draw.choice([{}, {"properties": {"c": {"type": "boolean"}}}]),
    }
