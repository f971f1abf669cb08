"""Pydantic's errors as the errors of fields: one for each wrong field, at its place in the client's body.

For a field with several forms pydantic reports every form. Of these, the errors are kept of the form that fits the
value best, which is the one that the client meant. The value itself is never repeated: it may be long or not printable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from itertools import groupby
from typing import Any

from phi3_serve.api.error_mapping import FieldError
from phi3_serve.api.fields import NOT_A_BOOLEAN
from phi3_serve.api.parameter_names import KWARGS, place_of


@dataclass(frozen=True, slots=True)
class _Problem:
    """One of pydantic's errors. ``field`` is the place of the outermost field with several forms, ``form`` the form."""

    error: FieldError
    field: tuple[str | int, ...]
    form: str | None

    @property
    def is_wrong_type(self) -> bool:
        """Whether the value has another type than the form, so that the client did not mean this form."""
        kind = self.error.type
        return kind.endswith(("_type", "_parsing", "_from_float")) or kind in ("literal_error", "is_instance_of")


def field_errors(details: Sequence[Mapping[str, Any]], body: Any, content_type: str | None) -> list[FieldError]:
    """The errors of the fields of ``body``; ``details`` are pydantic's errors."""
    problems = [_problem(each, body, content_type) for each in details]
    by_field = groupby(problems, key=lambda problem: (problem.field, problem.form is None))
    return [error for (_, is_plain), of_field in by_field for error in _meant(list(of_field), is_plain)]


def _meant(problems: list[_Problem], is_plain: bool) -> Iterable[FieldError]:
    """The errors of the form that the client meant; of all forms in one, if the value fits none."""
    if is_plain:
        return [problem.error for problem in problems]
    forms = [list(of_form) for _, of_form in groupby(problems, key=lambda problem: problem.form)]
    best = min(forms, key=_misfit)
    if _misfit(best)[0]:
        messages = dict.fromkeys(problem.error.message for of_form in forms for problem in of_form)
        return [FieldError(problems[0].field, " Or: ".join(messages), problems[0].error.type)]
    return [problem.error for problem in best]


def _misfit(of_form: Sequence[_Problem]) -> tuple[bool, int, int]:
    """How badly the value fits a form; less is better."""
    wrong_types = [problem for problem in of_form if problem.is_wrong_type]
    is_other_type = any(problem.error.location == problem.field for problem in wrong_types)
    return is_other_type, len(wrong_types), len(of_form)


def _problem(details: Mapping[str, Any], body: Any, content_type: str | None) -> _Problem:
    location: tuple[str | int, ...] = tuple(details["loc"])
    if details["type"] == "json_invalid":
        reason = details.get("ctx", {}).get("error", "")
        message = f"The body is not JSON at character {location[-1]}: {reason}. Check the quoting of your shell."
        return _Problem(FieldError(location, message, details["type"]), location, None)
    details = {**details, "loc": _sent_at(details, body)}
    place, field, form = _places(details, body)
    message = _message(details, place, content_type)
    return _Problem(FieldError(place, message, details["type"]), field, form)


def _sent_at(details: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """The location of an error. That of a generate parameter begins where the client put the parameter."""
    first, *rest = details["loc"]
    if details["type"] == NOT_A_BOOLEAN and rest == [KWARGS]:
        rest.append(details["ctx"]["name"])
    if len(rest) < 2 or rest[0] != KWARGS:
        return first, *rest
    return first, *place_of(body, rest[1]), *rest[2:]


def _places(details: Mapping[str, Any], body: Any) -> tuple[tuple[str | int, ...], tuple[str | int, ...], str | None]:
    """The place in the body, the place of the outermost field with several forms, and the form.

    Pydantic names a form where it names a key, for example ``("prompt", "list[int]", 0)``. What is no key is a form.
    """
    location: tuple[str | int, ...] = tuple(details["loc"])
    place, value = list(location[:1]), body
    field: tuple[str | int, ...] = ()
    form: str | None = None
    for part in location[1:]:
        if isinstance(part, int) and isinstance(value, Sequence) and not isinstance(value, str):
            place.append(part)
            value = value[part] if part < len(value) else None
        elif isinstance(value, Mapping) and (part in value or details["type"] == "missing"):
            place.append(part)
            value = value.get(part)
        elif form is None:
            field, form = tuple(place), str(part)
    return tuple(place), field or tuple(place), form


def _message(details: Mapping[str, Any], place: tuple[str | int, ...], content_type: str | None) -> str:
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
    return str(details["msg"])


def _is_json(content_type: str) -> bool:
    """Whether FastAPI reads a body of this type as JSON (``fastapi.routing.get_request_handler``)."""
    parsed = Message()
    parsed["content-type"] = content_type
    subtype = parsed.get_content_subtype()
    return parsed.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
