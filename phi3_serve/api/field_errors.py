"""Pydantic's errors as the errors of fields: one for each wrong field, at its place in the client's body.

A message says what is wrong with the value, and then all that the field takes.

For a field with several forms pydantic reports every form. Of these, the errors are kept of the form that fits the
value best, which is the one that the client meant. The value itself is never repeated: it may be long or not printable.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from itertools import groupby
from typing import Any

from fastapi.routing import APIRoute

from phi3_serve.api.allowed_values import Place, allowed_values, fields_of
from phi3_serve.api.error_mapping import FieldError
from phi3_serve.api.fields import NOT_A_BOOLEAN
from phi3_serve.api.given_parameters import OBJECTS, place_of
from phi3_serve.api.other_names import OTHER_NAMES

MAX_FIELDS_NAMED = 4  # of an object; the main ones come first
# The beginnings of the types of pydantic's errors about the bounds of a value.
_OF_BOUNDS = ("greater_", "less_", "finite_", "too_", "string_too_")


@dataclass(frozen=True, slots=True)
class _Problem:
    """One of pydantic's errors. ``forms`` has the fields with several forms around it, and which form it is of."""

    error: FieldError
    forms: tuple[tuple[Place, str], ...] = ()  # the outermost field first
    is_of_all_forms: bool = False  # the value fits no form of the field
    is_of_parameter: bool = False  # the field is a generate parameter, by any name, and no field that the API declares

    @property
    def is_wrong_type(self) -> bool:
        """Whether the value has another type than the form, so that the client did not mean this form."""
        kind = self.error.type
        return kind.endswith(("_type", "_parsing", "_parsing_size", "_from_float")) or kind in (
            "literal_error",
            "is_instance_of",
        )

    @property
    def has_own_schema(self) -> bool:
        """Whether the field is another server's name that takes other values than the parameter, which was checked."""
        other = OTHER_NAMES.get(str(self.error.location[-1]))
        return self.is_of_parameter and other is not None and other.schema is not None

    @property
    def is_of_one_form(self) -> bool:
        """Whether the field itself takes other forms, too, so that the bounds of this one are not all that it takes."""
        return any(place == self.error.location for place, _ in self.forms)

    def field(self, depth: int) -> tuple[Place, bool]:
        """The field with several forms at ``depth``, else the place of the error; and whether it has several forms."""
        return (self.forms[depth][0], True) if depth < len(self.forms) else (self.error.location, False)


def field_errors(
    details: Sequence[Mapping[str, Any]], body: Any, content_type: str | None, route: APIRoute
) -> list[FieldError]:
    """The errors of the fields of ``body``, which was sent to ``route``; ``details`` are pydantic's errors."""
    problems = [_problem(each, body, content_type) for each in details]
    return [_with_allowed_values(problem, route) for problem in _meant(problems, depth=0)]


def _with_allowed_values(problem: _Problem, route: APIRoute) -> FieldError:
    error = problem.error
    if error.type == "model_attributes_type" and (names := fields_of(route, error.location)):
        shown = (
            ", ".join(names) if len(names) <= MAX_FIELDS_NAMED else f"{', '.join(names[:MAX_FIELDS_NAMED])} and others"
        )
        return replace(error, message=f"This must be a JSON object; its fields are {shown}.")
    if not (problem.is_of_all_forms or problem.is_wrong_type or error.type.startswith((*_OF_BOUNDS, NOT_A_BOOLEAN))):
        return error
    allowed = allowed_values(route, error.location, None if problem.is_of_all_forms else error.type)
    if not allowed:
        return error
    message = error.message.removesuffix(".")
    if problem.has_own_schema and problem.is_of_all_forms:
        message = "The value has the wrong type"
    elif error.type.startswith(("greater_", "less_")) and (problem.has_own_schema or problem.is_of_one_form):
        message = "The value is out of range"
    return replace(error, message=f"{message}; allowed: {allowed}")


def _meant(problems: Iterable[_Problem], *, depth: int) -> list[_Problem]:
    """The problems of the forms that the client meant, at ``depth`` and below."""
    kept: list[_Problem] = []
    for (field, has_forms), group in groupby(problems, key=lambda problem: problem.field(depth)):
        of_field = list(group)
        kept += _of_best_form(of_field, field, depth) if has_forms else of_field
    return kept


def _of_best_form(problems: list[_Problem], field: Place, depth: int) -> list[_Problem]:
    """The problems of the form of ``field`` that fits best; of all forms in one, if the value fits none."""
    by_form = groupby(problems, key=lambda problem: problem.forms[depth][1])
    forms = [_meant(of_form, depth=depth + 1) for _, of_form in by_form]
    least = min(_misfit(of_form, field) for of_form in forms)
    best = [of_form for of_form in forms if _misfit(of_form, field) == least]
    if least[0]:
        return [_of_all(forms, field)]
    items = {problem.error.location for of_form in best for problem in of_form if problem.is_wrong_type}
    if len(best) > 1 and len(items) == 1 and all(len(of_form) == 1 for of_form in best):
        return [_of_all(best, items.pop())]  # an item of a list that fits no form of an item
    return best[0]


def _of_all(forms: Sequence[Sequence[_Problem]], field: Place) -> _Problem:
    """The problems of all ``forms`` of ``field`` in one."""
    messages = dict.fromkeys(problem.error.message for of_form in forms for problem in of_form)
    first = forms[0][0]
    error = FieldError(field, "; or: ".join(message.removesuffix(".") for message in messages), first.error.type)
    return _Problem(error, is_of_all_forms=True, is_of_parameter=first.is_of_parameter)


def _misfit(of_form: Sequence[_Problem], field: Place) -> tuple[bool, int, int, int]:
    """How badly the value of ``field`` fits a form; less is better. The deeper the problem, the more fits around it."""
    wrong_types = [problem for problem in of_form if problem.is_wrong_type]
    is_other_type = any(problem.error.location == field for problem in wrong_types)
    depth = max(len(problem.error.location) for problem in of_form)
    return is_other_type, len(wrong_types), len(of_form), -depth


def _problem(details: Mapping[str, Any], body: Any, content_type: str | None) -> _Problem:
    location: Place = tuple(details["loc"])
    if details["type"] == "json_invalid":
        reason = details.get("ctx", {}).get("error", "")
        message = f"The body is not JSON at character {location[-1]}: {reason}. Check the quoting of your shell."
        return _Problem(FieldError(location, message, details["type"]))
    is_of_parameter = len(location) > 2 and location[1] in OBJECTS
    details = {**details, "loc": _sent_at(details, body)}
    place, forms = _places(details, body)
    error = FieldError(place, _message(details, place, content_type), details["type"])
    return _Problem(error, forms, is_of_parameter=is_of_parameter)


def _sent_at(details: Mapping[str, Any], body: Any) -> Place:
    """The location of an error. That of a generate parameter begins where the client put the parameter."""
    first, *rest = details["loc"]
    if details["type"] == NOT_A_BOOLEAN and len(rest) == 1 and rest[0] in OBJECTS:
        rest += [details["ctx"]["name"], *details["ctx"]["indices"]]
    if len(rest) < 2 or rest[0] not in OBJECTS:
        return first, *rest
    return first, *place_of(body, rest[1], rest[0]), *rest[2:]


def _places(details: Mapping[str, Any], body: Any) -> tuple[Place, tuple[tuple[Place, str], ...]]:
    """The place in the body, and the fields with several forms around it with the form of each.

    Pydantic names a form where it names a key, for example ``("prompt", "list[int]", 0)``. What is no key is a form.
    """
    location: Place = tuple(details["loc"])
    if location[0] != "body":  # of the URL, whose fields have one form
        return location, ()
    place, value = list(location[:1]), body
    forms: list[tuple[Place, str]] = []
    for number, part in enumerate(location[1:], 1):
        is_missing = details["type"] == "missing" and number == len(location) - 1
        if isinstance(part, int) and isinstance(value, Sequence) and not isinstance(value, str):
            place.append(part)
            value = value[part] if part < len(value) else None
        elif isinstance(part, int) and isinstance(value, Mapping) and part < len(value):  # pairs, sent as an object
            key = list(value)[part]
            place.append(key)
            value = value[key]
        elif isinstance(value, Mapping) and (part in value or is_missing):
            place.append(part)
            value = value.get(part)
        elif not forms or forms[-1][0] != tuple(place):  # a form can have several parts, for example of its validators
            forms.append((tuple(place), str(part)))
    return tuple(place), tuple(forms)


def _message(details: Mapping[str, Any], place: Place, content_type: str | None) -> str:
    if place == ("body",) and not _is_json(content_type or ""):
        return f"The Content-Type header must be application/json; it is {(content_type or 'missing')[:80]}."
    if place == ("body",) and details["type"] == "missing":
        return "The body is empty; send a JSON object."
    if details["type"] in ("model_attributes_type", "dataclass_type"):
        return "This must be a JSON object."
    if details["type"] == NOT_A_BOOLEAN:
        name = next(part for part in reversed(place) if isinstance(part, str))
        return f"`{name}` does not take true or false"
    if details["type"] == "predicate_failed":  # parameters.Characters has the only predicate
        return "The text holds half of a surrogate pair, which is no character."
    if details["type"] == "dict_type":
        return "This must be a JSON object."
    return _in_words_of_json(str(details["msg"]))


def _in_words_of_json(message: str) -> str:
    """Pydantic's ``message`` without Python's words: JSON has lists, and they are counted as they were sent."""
    return re.sub(r"\b[Tt]uple\b", lambda found: "List" if found[0][0] == "T" else "list", message).replace(
        " after validation", ""
    )


def _is_json(content_type: str) -> bool:
    """Whether FastAPI reads a body of this type as JSON (``fastapi.routing.get_request_handler``)."""
    parsed = Message()
    parsed["content-type"] = content_type
    subtype = parsed.get_content_subtype()
    return parsed.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
