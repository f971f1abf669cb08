"""What travels between the ingress and the replicas survives a rollout of another version of phi3-serve."""

import pickle
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.core.event import Delta, Event
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.core.usage import Usage
from phi3_serve.parameters import NONE_GIVEN, GenerationParameters

REQUEST = GenerationRequest(
    request_id="x",
    model="m",
    prompt=RawPrompt("Hello"),
    parameters=GenerationParameters(max_new_tokens=5),
    adapters=(AdapterChoice("poet", 0.5),),
    stream=True,
    options=RequestOptions(timeout_s=5.0),
)


class OfOtherVersion:
    """Is pickled as ``like``, by a version in which some fields are missing and others are there."""

    def __init__(self, like: Any, *, without: str, **more: Any) -> None:
        self._restored, (self._cls, state) = like.__reduce__()
        self._state = {name: value for name, value in {**more, **state}.items() if name != without}

    def __reduce__(self) -> Any:
        return self._restored, (self._cls, self._state)


def test_a_pickle_keeps_all() -> None:
    for sent in (REQUEST, Delta("a", usage=Usage(1, 2))):
        assert pickle.loads(pickle.dumps(sent)) == sent


def test_a_missing_field_has_its_default_and_an_unknown_one_is_ignored() -> None:
    read = pickle.loads(pickle.dumps(OfOtherVersion(REQUEST, without="adapters", new_field=3)))
    assert (read.adapters, read.stream, read.prompt, read.options) == ((), True, REQUEST.prompt, REQUEST.options)
    assert (read.parameters, read.api_defaults) == (REQUEST.parameters, NONE_GIVEN)
    assert not hasattr(read, "new_field")


def test_a_missing_field_without_a_default_is_an_error() -> None:
    with pytest.raises(TypeError, match="options"):
        pickle.loads(pickle.dumps(OfOtherVersion(REQUEST, without="options")))


def classes_in(hint: Any) -> Iterator[type]:
    """The dataclasses that a value of the type ``hint`` may have in it."""
    if is_dataclass(hint):
        assert isinstance(hint, type)
        yield hint
        for of_field in get_type_hints(hint).values():
            yield from classes_in(of_field)
    for part in get_args(hint):
        yield from classes_in(part)


@pytest.mark.parametrize("travels", [GenerationRequest, TokenizationRequest, Tokenization, Event])
def test_all_that_travels_is_pickled_by_name(travels: Any) -> None:
    classes = set(classes_in(travels))
    assert classes
    assert [cls.__name__ for cls in classes if "__reduce__" not in vars(cls)] == []
