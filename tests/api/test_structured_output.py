"""Structured output through HTTP: every name that clients send, and OpenAI's own SDK."""

import json
import re
from collections.abc import Callable
from enum import Enum
from typing import Any

import jsonschema
import openai
import pytest
from anthropic import Anthropic
from fastapi import FastAPI
from openai import OpenAI
from pydantic import BaseModel, Field
from starlette.testclient import TestClient

from phi3_serve.api.refused_fields import IGNORED
from tests.api.test_parameters_as_fields import BODIES, MESSAGES, answer, each_api, refusal

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SHORT_OBJECT = {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2}
ASKED: Any = MESSAGES  # the SDK has a type for each role
LONG = {"max_tokens": 120}
OF_PERSON: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
EMAIL = r"[a-z]{1,5}@[a-z]{1,5}\.com\n"


def is_person(text: str) -> bool:
    jsonschema.validate(json.loads(text), PERSON)
    return True


@each_api
@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": PERSON},
        {"json_schema": json.dumps(PERSON)},  # SGLang
        {"response_format": OF_PERSON},
        {"response_format": {"type": "json_object", "schema": PERSON}},  # llama.cpp
        {"structured_outputs": {"json": PERSON}},
        {"structured_outputs": {"json": json.dumps(PERSON), "regex": None, "disable_any_whitespace": False}},
        {"guided_json": PERSON, "guided_decoding_backend": "xgrammar"},
        {"guided_json": json.dumps(PERSON)},
        {"format": PERSON},  # ollama
        {"json_schema": PERSON, "guided_json": PERSON, "grammar": "", "regex": "", "ebnf": ""},
    ],
    ids=lambda fields: str(fields)[:70],
)
def test_every_name_of_a_schema(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    for more in ({}, {"do_sample": True, "seed": 3, "top_k": 0}, {"num_beams": 2}):
        assert all(map(is_person, answer(client, path, {**LONG, **fields, **more})))
    in_kwargs = {name: value for name, value in fields.items() if name not in IGNORED}
    assert all(map(is_person, answer(client, path, LONG, in_kwargs)))


@each_api
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"regex": EMAIL}, EMAIL),
        ({"guided_regex": EMAIL}, EMAIL),
        ({"structured_outputs": {"regex": EMAIL}}, EMAIL),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"grammar": 'root ::= "a" ("b" | "c")'}, "ab|ac"),
        ({"guided_grammar": 'start: "a" ("b" | "c")'}, "ab|ac"),
        ({"structured_outputs": {"grammar": 'start: "a" ("b" | "c")'}}, "ab|ac"),
        ({"ebnf": 'root ::= "a" ("b" | "c")'}, "ab|ac"),
    ],
    ids=str,
)
def test_every_name_of_the_other_kinds(client: TestClient, path: str, fields: dict[str, Any], pattern: str) -> None:
    for seed in range(3):
        (text,) = answer(
            client, path, {**LONG, **fields, "do_sample": True, "temperature": 2, "top_k": 0, "seed": seed}
        )
        assert re.fullmatch(pattern, text), text


@each_api
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json_object": True}},
        {"format": "json"},
        {"json_schema": {"type": "object"}},
    ],
    ids=str,
)
def test_any_object(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    """All of them are the same request; a random model seldom closes an object within the limit."""
    shape = {"num_return_sequences": 1, "do_sample": False, "max_tokens": 60}
    (text,) = answer(client, path, {**fields, **shape})
    assert (text,) == tuple(answer(client, path, {"json_schema": {"type": "object"}, **shape}))
    assert text.startswith("{")


@each_api
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False}},
        {"grammar": "", "regex": "", "ebnf": "", "format": ""},
    ],
    ids=str,
)
def test_what_asks_for_nothing(client: TestClient, path: str, fields: dict[str, Any]) -> None:
    greedy = {"do_sample": False, "max_tokens": 8}
    assert answer(client, path, {**fields, **greedy}) == answer(client, path, greedy)


@each_api
@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"not": {}}}}}}},
            '`response_format` cannot be compiled at #/properties/a: Unimplemented keys: ["not"].',
        ),
        ({"guided_json": {"type": "strng"}}, "`guided_json` cannot be compiled at #: Invalid type: strng."),
        ({"structured_outputs": {"regex": "("}}, "`structured_outputs` cannot be compiled: invalid regex"),
        ({"guided_grammar": "start: x"}, "`guided_grammar` cannot be compiled at line 1, column 8"),
        ({"ebnf": "root ::= x"}, "`ebnf` cannot be read as GBNF: Rule 'x' not found."),
        ({"regex": "a(?!b)"}, "`regex` cannot be compiled"),
        ({"response_format": {"type": "xml"}}, "`type` is text, json_object or json_schema"),
        ({"response_format": "json"}, "`type` is text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "needs `json_schema.schema`"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "`structured_outputs.structural_tag` is not offered"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "`structured_outputs` takes one of json, regex"),
        ({"structured_outputs": {"json": {}, "json_object": True}}, "`structured_outputs` takes one of json, regex"),
        ({"structured_outputs": "json"}, "`structured_outputs` must be an object"),
        ({"regex": "a", "choice": ["a"]}, "`regex` and `choice` exclude each other"),
        (
            {"response_format": OF_PERSON, "guided_choice": ["a"]},
            "`response_format` and `guided_choice` exclude each other",
        ),
        ({"response_format": OF_PERSON, "guided_json": {}}, "set the same parameter to different values"),
        ({"json_schema": PERSON, "eos_token_id": []}, "`eos_token_id` is empty"),
        ({"guided_regex": "[0-9]+", "allowed_token_ids": [400, 401]}, "`guided_regex` allows none of the tokens"),
        ({"guided_grammar": "root ::= "}, "`guided_grammar` cannot be compiled: it allows the empty text only."),
        ({"ebnf": 'root ::= ""'}, "`ebnf` cannot be compiled: it allows the empty text only."),
        ({"guided_regex": "()"}, "`guided_regex` cannot be compiled: it allows the empty text only."),
        ({"guided_whitespace_pattern": " "}, "`guided_whitespace_pattern` is not accepted"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_errors_name_the_field_that_was_sent(client: TestClient, path: str, fields: dict[str, Any], text: str) -> None:
    message, param = refusal(client, path, {"max_tokens": 20, **fields})
    assert text in message
    assert param in (None, *fields)


@each_api
@pytest.mark.parametrize(
    ("name", "value"),
    [("json_schema", 3), ("json_schema", [1]), ("regex", 3), ("regex", "a" * 70_000), ("choice", []), ("choice", [""])],
    ids=lambda value: str(value)[:20],
)
def test_wrong_types_are_refused(client: TestClient, path: str, name: str, value: Any) -> None:
    _, param = refusal(client, path, {name: value})
    assert param is None or name in param


@each_api
@pytest.mark.parametrize("keyword", ["items", "const"])
def test_a_deep_schema_is_refused(client: TestClient, path: str, keyword: str) -> None:
    schema: Any = {}
    for _ in range(300):
        schema = {keyword: schema}
    fields = {"guided_json": schema, "generate_kwargs": {"json_schema": schema}}
    assert refusal(client, path, fields)[0] == "`guided_json` is nested more than 128 levels deep."


def test_the_text_must_stay_as_it_is(client: TestClient) -> None:
    message, _ = refusal(client, "/chat", {"choice": ["yes ."], "clean_up_tokenization_spaces": True})
    assert "`clean_up_tokenization_spaces` changes the text" in message


@each_api
def test_other_ends_have_no_effect_and_are_warned_of(client: TestClient, path: str) -> None:
    fields = {"choice": ["yes and no"], "stop": ["and"], "ignore_eos": True, **LONG}
    content = client.post(path, json={**BODIES[path], **fields}).json()
    assert answer(client, path, fields) == ["yes and no"]
    assert content["warnings"] == [
        f"`{name}` has no effect with `choice`: the answer ends where it is complete."
        for name in ("stop", "ignore_eos")
    ]


@each_api
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 0}], ids=str)
def test_a_minimum_length_ends_where_nothing_can_follow(client: TestClient, path: str, mode: dict[str, Any]) -> None:
    fields = {"max_tokens": 40, "min_tokens": 30, **mode}
    assert set(answer(client, path, {"guided_choice": ["yes", "no"], **fields})) <= {"yes", "no"}
    assert all(map(is_person, answer(client, path, {**LONG, **mode, "json_schema": PERSON, "min_tokens": 110})))
    for text in answer(client, path, {"regex": "a*", **fields}):
        assert len(text) >= 29  # the first token can be a space, which the text loses
        assert not text.strip("a")


def test_an_answer_that_ran_out_of_tokens_says_so(client: TestClient) -> None:
    body = {**BODIES["/v1/chat/completions"], "response_format": OF_PERSON, "max_tokens": 5}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["finish_reason"] == "length"
    details = {"prompt": "x", "json_schema": PERSON, "max_new_tokens": 5, "return_dict_in_generate": True}
    (sequence,) = client.post("/chat", json=details).json()["Details"]["sequences"]
    assert sequence["finish_reason"] == "length"


def test_a_prompt_goes_on_with_the_text(client: TestClient) -> None:
    """The text of an answer to a prompt begins where the prompt ends: a space is one, and the grammar has it."""
    body = {"prompt": "The answer is", "choice": [" yes", " no"], "return_full_text": True, "max_new_tokens": 20}
    assert client.post("/chat", json=body).json()["Result"] in ("The answer is yes", "The answer is no")
    body |= {"choice": ["yes", "no"]}
    assert client.post("/chat", json=body).json()["Result"] in ("The answer isyes", "The answer isno")


class Mood(Enum):
    """Of somebody."""

    GOOD = "good"
    BAD = "bad"


class Pet(BaseModel):
    """An animal."""

    name: str = Field(max_length=6)
    legs: int = Field(ge=0, le=8)


class Vote(BaseModel):
    """No text of any length: Anthropic's SDK leaves the limits of a text to the model."""

    mood: Mood
    is_sure: bool


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=6)
    mood: Mood
    pets: list[Pet] = Field(max_length=2)
    height: float | None


@pytest.fixture(scope="module")
def sdk(server_url: str) -> OpenAI:
    return OpenAI(base_url=f"{server_url}/v1", api_key="unused")


@pytest.fixture(scope="module")
def tiny_sdk(make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str]) -> OpenAI:
    return OpenAI(base_url=f"{serve_app(make_tiny_app())}/v1", api_key="unused")


def test_parse_of_the_sdk(sdk: OpenAI) -> None:
    for seed in range(3):
        completion = sdk.chat.completions.parse(
            model="tested",
            messages=ASKED,
            response_format=Person,
            seed=seed,
            temperature=1.5,
            max_tokens=300,
        )
        person = completion.choices[0].message.parsed
        assert isinstance(person, Person)
        assert isinstance(person.mood, Mood)


def test_parse_of_the_sdk_by_the_tiny_model(tiny_sdk: OpenAI) -> None:
    completion = tiny_sdk.chat.completions.parse(
        model="phi-3-tiny",
        messages=ASKED,
        response_format=Person,
        temperature=0,
        max_tokens=300,
        n=1,
    )
    assert isinstance(completion.choices[0].message.parsed, Person)
    assert completion.choices[0].finish_reason == "stop"


def test_a_stream_of_the_sdk_is_parsed(sdk: OpenAI) -> None:
    with sdk.chat.completions.stream(
        model="tested",
        messages=ASKED,
        response_format=Person,
        seed=1,
        max_tokens=300,
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        person = stream.get_final_completion().choices[0].message.parsed
    assert isinstance(person, Person)
    assert Person.model_validate_json("".join(deltas)) == person


def test_the_sdk_is_told_of_a_lack_of_tokens(sdk: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        sdk.chat.completions.parse(model="tested", messages=ASKED, response_format=Person, max_tokens=4)


def test_the_sdk_is_told_of_a_schema_that_cannot_be_compiled(sdk: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model="tested",
            messages=ASKED,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"uniqueItems": True}}},
        )
    assert caught.value.param == "response_format"
    assert "Unimplemented keys" in caught.value.message


def test_several_answers(sdk: OpenAI) -> None:
    completion = sdk.chat.completions.create(
        model="tested",
        messages=ASKED,
        response_format=OF_PERSON,
        n=4,
        max_tokens=120,
    )
    assert all(is_person(choice.message.content or "") for choice in completion.choices)
    assert len(completion.choices) == 4


def test_parse_of_responses(sdk: OpenAI) -> None:
    asked: Any = {"model": "tested", "input": ASKED, "text_format": Person, "temperature": 1.5}
    for seed in range(3):
        answer = sdk.responses.parse(**asked, extra_body={"seed": seed})
        assert isinstance(answer.output_parsed, Person)
        assert answer.text is not None
        assert answer.text.format is not None
        assert answer.text.format.type == "json_schema"
    with sdk.responses.stream(**asked, extra_body={"seed": 0}) as stream:
        final: Any = stream.get_final_response()
    assert final.output_parsed == sdk.responses.parse(**asked, extra_body={"seed": 0}).output_parsed


def test_any_object_by_responses(sdk: OpenAI) -> None:
    asked: Any = {"model": "tested", "input": ASKED, "temperature": 0, "max_output_tokens": 60}
    by_format = sdk.responses.create(**asked, text={"format": {"type": "json_object"}})
    assert by_format.output_text.startswith("{")
    by_name = sdk.responses.create(**asked, extra_body={"json_schema": {"type": "object"}})
    assert by_format.output_text == by_name.output_text
    text = sdk.responses.create(**asked, text={"format": {"type": "text"}})
    assert text.output_text == sdk.responses.create(**asked).output_text


def test_parse_of_anthropics_sdk(server_url: str) -> None:
    asked: Any = {"model": "tested", "messages": ASKED, "output_format": Vote, "max_tokens": 100}
    with Anthropic(base_url=server_url, api_key="unused") as client:
        for seed in range(3):
            message = client.messages.parse(**asked, extra_body={"seed": seed})
            assert isinstance(message.parsed_output, Vote)
        with client.messages.stream(**asked, extra_body={"seed": 0}) as stream:
            final: Any = stream.get_final_message()
        assert final.parsed_output == client.messages.parse(**asked, extra_body={"seed": 0}).parsed_output
        counted = client.messages.count_tokens(
            model="tested", messages=ASKED, output_config={"format": {"type": "json_schema", "schema": PERSON}}
        )
        assert counted.input_tokens == client.messages.count_tokens(model="tested", messages=ASKED).input_tokens
