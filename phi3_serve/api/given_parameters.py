"""Where a client may put a generate parameter, and by which names: the same for every API.

A parameter may be a field of the body or of one object in it, by its own name or by that of another server. The object
is ``generate_kwargs``, and in ollama's API ``options``.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from phi3_serve.api.json_values import check_json
from phi3_serve.api.other_names import NESTED_NAMES, OTHER_NAMES, Json, OtherName
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import NAMES

KWARGS = "generate_kwargs"
OPTIONS = "options"
OBJECTS = (KWARGS, OPTIONS)
"""The fields whose values are objects of generate parameters."""
_ALL_NAMES = frozenset({*NAMES, *OTHER_NAMES})


@dataclass(frozen=True, slots=True)
class GivenParameters:
    """The generate parameters of one body, from all places."""

    values: dict[str, Any] = field(default_factory=dict)  # parameter → value; without the own fields of the body
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)  # parameter → keys from the body to the value

    @property
    def names(self) -> Mapping[str, str]:
        """Parameter → the name by which the client sent it."""
        return {
            parameter: ".".join(place) if place in NESTED_NAMES else place[-1]
            for parameter, place in self.places.items()
        }


def place_of(body: Any, parameter: str, holder: str = KWARGS) -> tuple[str, ...]:
    """The keys of the value in ``body`` that sets ``parameter``. ``holder``: the field with an object of parameters."""
    for place, name, _ in _fields(body, body, holder) if isinstance(body, dict) else ():
        other = _other_name(place)
        if name == parameter or (other is not None and other.parameter == parameter):
            return place
    return holder, parameter


def is_name(name: str) -> bool:
    """Whether a generate parameter has this name, here or at another server."""
    return name in _ALL_NAMES


def given_parameters(body: Json, own_fields: Collection[str] = (), holder: str = KWARGS) -> GivenParameters:
    """The parameters of ``body``; null is the same as a field that is left out.

    The schema has ``own_fields``. They are compared with the others, and are not among the values. ``holder``: the
    field with an object of parameters.

    Raises:
        InvalidRequest: a parameter is given twice, with different values.
    """
    given = GivenParameters()
    in_kwargs = body.get(holder)
    of_kwargs = in_kwargs.items() if isinstance(in_kwargs, dict) else ()
    siblings = {**body, **{name: value for name, value in of_kwargs if value is not None}}
    values: dict[str, Any] = {}
    for place, name, value in _fields(body, own_fields, holder):
        other = _other_name(place)
        for parameter, of_parameter in (
            {name: value} if other is None else other.parameters_of(value, siblings)
        ).items():
            if parameter == "json_schema":
                check_json(of_parameter, name)
            is_own = len(place) == 1 and name in own_fields
            if parameter in values and values[parameter] != of_parameter:
                earlier = given.places[parameter]
                if not (is_own and earlier[-1] in own_fields):  # the API itself decides between its own fields
                    raise _differ(earlier, place)
            values.setdefault(parameter, of_parameter)
            given.places.setdefault(parameter, place)
            if not is_own:
                given.values[parameter] = of_parameter
    return given


def _differ(one: tuple[str, ...], other: tuple[str, ...]) -> InvalidRequest:
    names = [".".join(place) for place in (one, other)]
    return InvalidRequest(
        f"`{names[0]}` and `{names[1]}` set the same parameter to different values; send one of them.", names[0]
    )


def _other_name(place: tuple[str, ...]) -> OtherName | None:
    """What another server's name at ``place`` means; None if it is a parameter's own name."""
    return NESTED_NAMES.get(place) or OTHER_NAMES.get(place[-1])


def _fields(body: Json, own_fields: Collection[str], holder: str) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """The keys, the name and the value of each parameter."""
    for name, value in body.items():
        if is_name(name) and value is not None:
            yield (name,), name, value
    for outer, inner in NESTED_NAMES:
        within = body.get(outer) if outer in own_fields else None
        if isinstance(within, dict) and within.get(inner) is not None:
            yield (outer, inner), f"{outer}.{inner}", within[inner]
    in_kwargs = body.get(holder)
    for name, value in in_kwargs.items() if isinstance(in_kwargs, dict) else ():
        if value is not None or not is_name(name):
            yield (holder, str(name)), str(name), value
