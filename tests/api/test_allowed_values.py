"""Every number that a request may have, too small, too large and of another type: the error names the field as it was
sent, and the full range.

The fields are those of the OpenAPI document, which is made from the models, and so are the bounds.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from phi3_serve.api.body_with_parameters import OF_PARAMETER
from phi3_serve.api.given_parameters import OBJECTS
from phi3_serve.api.other_names import OTHER_NAMES

Json = Mapping[str, Any]
Place = tuple[str | int, ...]

BODIES = [
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/apply-template",
    "/chat",
    "/detokenize",
    "/tokenize",
    "/v1/batches",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/{model}/chat",
]
QUERIES = ["/v1/batches", "/v1/files"]
NUMBERS = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
EMPTY = {"type": "object"}
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


@dataclass(frozen=True)
class Field:
    """A field that takes a number; ``schema`` is all that it takes. ``around`` are the forms of the values around it."""

    place: Place
    schema: Json
    around: tuple[Json, ...] = ()

    @property
    def name(self) -> str:
        return ".".join(map(str, self.place))


class Document:
    """The OpenAPI document."""

    def __init__(self, document: Json) -> None:
        self.paths: Json = document["paths"]
        self._definitions = document["components"]

    def body(self, path: str) -> Json:
        content = self.paths[path].get("post", {}).get("requestBody", {}).get("content", {})
        schema: Json = content.get("application/json", {}).get("schema", {})
        return self._without_reference(schema)

    def query(self, path: str) -> list[Field]:
        parameters = self.paths[path].get("get", {}).get("parameters", ())
        queries = [Field((one["name"],), one["schema"]) for one in parameters if one["in"] == "query"]
        return [field for field in queries if self._is_number(field.schema)]

    def fields(self, schema: Json, place: Place = (), around: tuple[Json, ...] = ()) -> Iterator[Field]:
        """The fields below ``schema`` that take numbers."""
        if self._is_number(schema):
            yield Field(place, schema, around)
        for form in self._forms(schema):
            for part, inner in self._parts(form):
                yield from self.fields(inner, (*place, part), (*around, form))

    def with_value(self, field: Field, value: Any) -> Any:
        """The least body that the schema takes, but ``value`` in ``field``."""
        whole = value
        for part, form in zip(reversed(field.place), reversed(field.around), strict=True):
            inner, whole = whole, self._least(form)
            if isinstance(part, int) and part == len(whole):
                whole.append(inner)
            else:
                whole[part] = inner
        return whole

    def takes(self, schema: Json, value: Any) -> bool:
        whole = {**schema, "components": self._definitions}
        return bool(jsonschema.Draft202012Validator(whole).is_valid(value))

    def _is_number(self, schema: Json) -> bool:
        return any(form.get("type") in ("integer", "number") for form in self._forms(schema))

    def _forms(self, schema: Json) -> list[Json]:
        schema = self._without_reference(schema)
        several = schema.get("anyOf", schema.get("oneOf"))
        return [schema] if several is None else [inner for form in several for inner in self._forms(form)]

    def _parts(self, form: Json) -> list[tuple[str | int, Json]]:
        parts: list[tuple[str | int, Json]] = [*form.get("properties", {}).items()]
        if isinstance(of_others := form.get("additionalProperties"), dict):
            parts.append(("5", of_others))
        if "prefixItems" in form:
            return [*parts, *enumerate(form["prefixItems"])]
        return [*parts, (2, form["items"])] if "items" in form else parts

    def _least(self, schema: Json) -> Any:
        form = self._forms(schema)[0]
        if "const" in form or "enum" in form:
            return form["const"] if "const" in form else form["enum"][0]
        match form.get("type"):
            case "object":
                example = json.loads(json.dumps(form.get("examples", [{}])[0]))
                required = form.get("required", ())
                return {name: example.get(name) or self._least(form["properties"][name]) for name in required}
            case "array":
                # two items, so that a wrong third one does not make another form of the list fit better
                return [self._least(item) for item in form.get("prefixItems", [form.get("items", {})] * 2)]
            case "string":
                return "a" * form.get("minLength", 1)
            case "integer" | "number":
                return form.get("minimum", form.get("exclusiveMinimum", 0) + 1)
        return True

    def _without_reference(self, schema: Json) -> Json:
        if "$ref" not in schema:
            return schema
        named: Json = self._definitions["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        return self._without_reference(named)


@pytest.fixture(scope="module")
def document(client: TestClient) -> Document:
    return Document(client.get("/openapi.json").json())


def fields_of(document: Document, path: str) -> list[Field]:
    """The numbers of a body, those of other servers' names also in the object of parameters."""
    schema = document.body(path)
    required = {parameter_of(name): name for name in schema.get("required", ()) if name in OTHER_NAMES}
    fields = [
        field
        for field in document.fields(schema)
        if not is_other_name_in_object(field.place)
        # A value beside that of a required field would be refused as a contradiction, whatever it is.
        and required.get(parameter_of(field.name.split(".")[field.place[0] in OBJECTS]), field.name) == field.name
    ]
    holder = next((name for name in OBJECTS if name in schema["properties"]), None)
    others = [field for field in fields if field.place[0] in OTHER_NAMES and OF_PARAMETER in field.schema]
    if holder is None:
        return fields
    return [*fields, *(Field((holder, *one.place), one.schema, (schema, EMPTY, *one.around[1:])) for one in others)]


def parameter_of(name: str) -> str:
    return OTHER_NAMES[name].parameter if name in OTHER_NAMES else name


def is_other_name_in_object(place: Place) -> bool:
    """Whether the schema of the object lacks the meaning that the name has at another server, as top_k -1 does."""
    return len(place) > 1 and place[0] in OBJECTS and place[1] in OTHER_NAMES


def bounds_of(document: Document, field: Field) -> set[float]:
    return {float(form[bound]) for form in document._forms(field.schema) for bound in BOUNDS if bound in form}


def wrong_values(document: Document, field: Field) -> list[Any]:
    """What the field does not take: below each lower bound, above each upper bound, and of other types."""
    numbers = [form for form in document._forms(field.schema) if form.get("type") in ("integer", "number")]
    low = [int(form[bound]) for form in numbers for bound in BOUNDS[:2] if bound in form]
    high = [int(form[bound]) for form in numbers for bound in BOUNDS[2:] if bound in form]
    too_small = (
        next(filter(lambda one: not document.takes(field.schema, one), range(low[0], low[0] - 9, -1))) if low else None
    )
    too_large = high[0] + 1 if high else None
    others = [value for value in ("x", {"a": 1}, True) if not document.takes(field.schema, value)]
    return [value for value in (too_small, too_large) if value is not None] + others


def field_and_message(path: str, body: Json) -> tuple[str, str]:
    """The field that an error names, and what it says, in the format of the API of ``path``."""
    if path.startswith("/api/"):
        field, _, message = body["error"].partition(": ")
    elif path.startswith("/v1/messages"):
        field, _, message = body["error"]["message"].partition(": ")
    elif "detail" in body:
        (error,) = [{"loc": (), "msg": body["detail"]}] if isinstance(body["detail"], str) else body["detail"]
        field, message = ".".join(map(str, error["loc"][1:])), error["msg"]
    else:
        field, message = body["error"]["param"], body["error"]["message"]
    return field, message


def problems_with(document: Document, path: str, field: Field, value: Any, status: int, body: Json) -> Iterator[str]:
    """What is wrong with the answer to a request that has ``value`` in ``field``."""
    sent = f"{path} {field.name}={json.dumps(value)}: {status} {json.dumps(body)[:400]}"
    if status not in (400, 422):
        yield f"not refused: {sent}"
        return
    named, message = field_and_message(path, body)
    if named != field.name:
        yield f"another field: {sent}"
    allowed = message.partition("; allowed: ")[2]
    if missing := bounds_of(document, field) - set(map(float, NUMBERS.findall(allowed))):
        yield f"without {missing}: {sent}"
    if "number" not in allowed:
        yield f"without the type: {sent}"


@pytest.mark.parametrize("path", BODIES)
def test_a_wrong_number_of_a_body_is_named_with_its_range(client: TestClient, document: Document, path: str) -> None:
    problems: list[str] = []
    for field in fields_of(document, path):
        for value in wrong_values(document, field):
            body = document.with_value(field, value)
            answer = client.post(path.replace("{model}", "tested"), json=body)
            problems += problems_with(document, path, field, value, answer.status_code, answer.json())
    assert problems == [], "\n".join(problems)


@pytest.mark.parametrize("path", QUERIES)
def test_a_wrong_number_of_a_url_is_named_with_its_range(
    make_tiny_app: Callable[[], FastAPI], document: Document, path: str
) -> None:
    problems: list[str] = []
    with TestClient(make_tiny_app()) as client:
        for field in document.query(path):
            for value in wrong_values(document, field):
                text = value if isinstance(value, str) else json.dumps(value)
                answer = client.get(path, params={field.name: text})
                problems += problems_with(document, path, field, value, answer.status_code, answer.json())
    assert problems == [], "\n".join(problems)


def test_no_path_is_left_out(document: Document) -> None:
    assert sorted(path for path in document.paths if document.body(path)) == BODIES
    assert sorted(path for path in document.paths if document.query(path)) == QUERIES
    without_numbers = [
        "/api/show",
        "/apply-template",
        "/tokenize",
        "/v1/messages/count_tokens",
        "/v1/responses/input_tokens",
    ]
    assert [path for path in BODIES if not fields_of(document, path)] == without_numbers
