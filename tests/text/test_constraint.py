"""What a constraint allows is what a grammar allows of the text that the client gets, with real tokenizers."""

import json
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.prompt import Conversation, Message, Prompt, RawPrompt
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import StructuredOutput, resolve
from phi3_serve.text.constraint import MAX_KEPT, Grammars
from phi3_serve.text.grammar import MAX_DEPTH
from phi3_serve.text.tokenizer import Phi3Tokenizer
from tests import real_tokenizer
from tests.oracle.brute_force import BruteForce

ENDS = {"tiny": 1759, "phi-3": 32007}
VOCAB_SIZES = {"tiny": 1792, "phi-3": 32064}
TURN = Conversation((Message("user", "Which?"),))
GOES_ON = RawPrompt("It is")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WANTED: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"json_schema": json.dumps(PERSON)},
    {"json_schema": {"type": "array", "items": {"enum": ["é", "\n", 1.5, None]}, "maxItems": 3}},
    {"regex": r"( |\n)?[a-zé]{1,3} end"},
    {"regex": r" +x"},
    {"choice": ["yes", " yes", "no", "naïve 😀"]},
    {"grammar": 'start: "(" start ")" | /[0-9]+/'},
    {"grammar": 'root ::= "a" ("b" | " c")* "\\n"'},
]


@cache
def tokenizer_named(name: str) -> Phi3Tokenizer:
    return Phi3Tokenizer(AutoTokenizer.from_pretrained(EMBEDDED_TINY)) if name == "tiny" else real_tokenizer.served()


@cache
def grammars_named(name: str) -> Grammars:
    return Grammars(tokenizer_named(name), VOCAB_SIZES[name])


def request(name: str, prompt: Prompt, **wanted: Any) -> EngineRequest:
    """A request as the replica makes it."""
    tokenizer = tokenizer_named(name)
    parameters = resolve(GenerationParameters(eos_token_id=ENDS[name], max_new_tokens=40, **wanted))
    made = prepare("r", tokenizer.encode(prompt), parameters, context_length=2048, timeout_s=1)
    assert parameters.structured_output is not None
    constraint = grammars_named(name).constraint(
        parameters.structured_output,
        ends=parameters.eos_token_ids,
        is_start_of_text=not tokenizer.before_answer(prompt, made.prompt_ids),
    )
    return replace(made, constraint=constraint)


def allowed(mask: bytes, size: int) -> list[bool]:
    bits: list[bool] = np.unpackbits(np.frombuffer(mask, np.uint8), count=size, bitorder="little").astype(bool).tolist()
    return bits


def text_of(name: str, prompt: Prompt, asked: EngineRequest, token_ids: Sequence[int]) -> str:
    """The text that a client gets."""
    tokenizer = tokenizer_named(name)
    stream = tokenizer.stream(tokenizer.before_answer(prompt, asked.prompt_ids), asked.parameters, clean_up=False)
    return "".join(stream.add([token]) for token in token_ids) + stream.finish()


@pytest.mark.parametrize("wanted", WANTED, ids=str)
@pytest.mark.parametrize("prompt", [TURN, GOES_ON], ids=["conversation", "prompt"])
@pytest.mark.parametrize("name", ["tiny", pytest.param("phi-3", marks=pytest.mark.thorough)])
def test_walks_allow_what_brute_force_allows(name: str, prompt: Prompt, wanted: dict[str, Any]) -> None:
    """At each step of random walks the mask is that of brute force, and a walk that ends is a whole text."""
    draw = random.Random(str(wanted))
    asked = request(name, prompt, **wanted)
    reference = BruteForce(asked, tokenizer_named(name), VOCAB_SIZES[name], is_start_of_text=prompt == TURN)
    # brute force over the whole vocabulary of Phi-3 takes a second for each step
    num_walks, num_compared = (6, 60) if name == "tiny" else (4, 3)
    num_ended = 0
    for _ in range(num_walks):
        assert asked.constraint is not None
        constraint = asked.constraint.fork()
        answer: list[int] = []
        while len(answer) < 40:
            mask = allowed(constraint.mask(), VOCAB_SIZES[name])
            if (num_compared := num_compared - 1) >= 0:
                assert mask == reference.allowed(answer)
            ids = [token for token, is_allowed in enumerate(mask) if is_allowed]
            token = ENDS[name] if mask[ENDS[name]] and (len(ids) == 1 or draw.random() < 0.5) else draw.choice(ids)
            assert constraint.advance(token)
            answer.append(token)
            if token == ENDS[name]:
                num_ended += 1
                assert reference.is_complete(text_of(name, prompt, asked, answer).encode())
                break
        text = reference.text([token for token in answer if token != ENDS[name]])
        assert text.decode(errors="replace") == text_of(name, prompt, asked, answer)
    assert num_ended or "json_schema" in wanted


@pytest.mark.parametrize("name", list(ENDS))
def test_a_token_alone_is_the_text_of_its_bytes(name: str) -> None:
    """The first token of a text loses its first space, whichever it is."""
    tokenizer = tokenizer_named(name)
    assert tokenizer.drops_first_space
    for token in range(VOCAB_SIZES[name]):
        piece = tokenizer.piece(token)
        if piece and token not in tokenizer.control_ids:
            assert tokenizer.decode([token]) == piece.removeprefix(b" ").decode(errors="replace")


@pytest.mark.parametrize("text", ['{"name": "Ann", "age": 7}', '{\n  "name": "é\\n",\n  "age": 0\n}'])
@pytest.mark.parametrize("prompt", [TURN, GOES_ON], ids=["conversation", "prompt"])
def test_the_usual_tokens_of_a_text_are_allowed(prompt: Prompt, text: str) -> None:
    """Those that Phi-3 was trained on: with a space before the first word."""
    tokenizer, constraint = tokenizer_named("phi-3"), request("phi-3", prompt, json_schema=PERSON).constraint
    assert constraint is not None
    tokens = tokenizer.encode_text(text)
    assert tokenizer.piece(tokens[0]).startswith(b" ")
    if prompt == GOES_ON:  # the space would be part of the text
        assert not constraint.fork().advance(tokens[0])
        tokens = tokenizer.encode_text("\n" + text)[2:]
    for number, token in enumerate(tokens):
        if number:
            assert constraint.num_allowed(tokens[number:]) == len(tokens) - number
        assert constraint.advance(token), tokenizer.piece(token)
    assert constraint.is_finished
    ids = [token for token, is_allowed in enumerate(allowed(constraint.mask(), VOCAB_SIZES["phi-3"])) if is_allowed]
    assert ids == [ENDS["phi-3"]]


def test_forks_go_on_separately() -> None:
    constraint = request("tiny", TURN, choice=["ab", "ac"]).constraint
    assert constraint is not None
    a, b, c = (tokenizer_named("tiny").encode_text("\n" + letter)[-1] for letter in "abc")
    assert constraint.advance(a)
    other = constraint.fork()
    assert constraint.advance(b)
    assert not constraint.advance(c)
    assert not any(constraint.mask())  # nothing after a token that is not allowed
    assert other.advance(c)
    assert other.is_finished
    assert other.advance(ENDS["tiny"])
    assert not any(other.mask())  # nothing after an end
    assert not other.advance(ENDS["tiny"])


def test_an_end_within_a_draft_is_not_allowed() -> None:
    constraint = request("tiny", GOES_ON, regex="a+").constraint
    assert constraint is not None
    (a,) = tokenizer_named("tiny").encode_text("\na")[2:]
    assert constraint.num_allowed([a, a, ENDS["tiny"], a]) == 2


def test_whitespace_of_json_is_limited() -> None:
    """A model that repeats itself cannot fill an answer with it."""
    constraint = request("tiny", GOES_ON, json_schema=PERSON).constraint
    assert constraint is not None
    brace, newline, space = (tokenizer_named("tiny").encode_text("\n" + c)[-1] for c in "{\n ")
    assert constraint.advance(brace)
    assert constraint.fork().num_allowed([newline, newline]) == 1
    assert constraint.advance(newline)
    assert constraint.num_allowed([space] * 100) == 64


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (
            {"json_schema": {"properties": {"a": {"items": {"anyOf": [{}, {"properties": {"b/c": {"not": {}}}}]}}}}},
            '`json_schema` cannot be compiled at #/properties/a/items/anyOf/1/properties/b~1c: Unimplemented keys: ["not"].',
        ),
        (
            {"json_schema": {"$defs": {"x": {"type": "strng"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}},
            "`json_schema` cannot be compiled at #/$defs/x: Invalid type: strng.",
        ),
        ({"json_schema": {"format": "foo"}}, "`json_schema` cannot be compiled at #: Unknown format: foo."),
        ({"json_schema": {"x-guidance": {"lenient": True}, "format": "foo"}}, "Unknown format: foo."),
        ({"json_schema": {"oneOf": [{"type": "integer"}, {"minimum": 3}]}}, "oneOf constraints are not supported"),
        (
            {"json_schema": {"minProperties": 2}},
            "`json_schema` cannot be compiled at #: `minProperties` is 2 and 0 properties are required",
        ),
        ({"json_schema": {"$ref": "#"}}, "it allows no text"),
        ({"json_schema": {"$ref": "http://127.0.0.1/x"}}, "`json_schema` cannot be compiled at #"),
        (
            {"json_schema": {"properties": {"a": {"items": {"minProperties": 3, "required": ["b"]}}}}},
            "`json_schema` cannot be compiled at #/properties/a/items: `minProperties` is 3 and 1 properties are required",
        ),
        ({"json_schema": {"properties": {"x" * 5000: {"not": {}}}}}, 'xxx: Unimplemented keys: ["not"].'),
        ({"json_schema": False}, "schema is false"),
        ({"json_schema": "{"}, "`json_schema` is a text that is not JSON: Expecting property name"),
        ({"json_schema": "[]"}, "`json_schema` must be a JSON schema: an object, true or false."),
        ({"json_schema": {"const": "x" * 300_000}}, "the most is 262,144"),
        ({"regex": "(a"}, "`regex` cannot be compiled: invalid regex"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"grammar": "start: a\n\na: b"}, '`grammar` cannot be compiled at line 3, column 4: unknown name: "b".'),
        ({"grammar": 'root ::= "a" x'}, "`grammar` cannot be read as GBNF: Rule 'x' not found."),
        ({"grammar": "("}, "`grammar` cannot be"),
        ({"grammar": "root ::= "}, "`grammar` cannot be compiled: it allows the empty text only."),
        ({"grammar": 'start: ""'}, "`grammar` cannot be compiled: it allows the empty text only."),
        ({"regex": ""}, "`regex` cannot be compiled: it allows the empty text only."),
    ],
    ids=str,
)
def test_errors_name_the_parameter_and_the_place(wanted: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request("tiny", TURN, **wanted)
    assert text in caught.value.message
    assert caught.value.param == next(iter(wanted))
    assert "%llguidance" not in caught.value.message
    assert len(caught.value.message) < 1200


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 2):
        schema = {"items": schema}
    with pytest.raises(
        InvalidRequest, match="`json_schema` cannot be compiled at #: it is nested more than 100 schemas deep"
    ):
        request("tiny", TURN, json_schema=schema)


@pytest.mark.parametrize(
    "wanted",
    [
        {"json_schema": {"enum": [str(i) for i in range(20_000)]}},
        {"json_schema": {"pattern": "(a{1,1000}){1,1000}"}},
        pytest.param(
            {"json_schema": {"anyOf": [{"properties": {f"p{i}": {"type": "string"}}} for i in range(2000)]}},
            marks=pytest.mark.thorough,
        ),
        {"json_schema": {"minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}},
        {"regex": "(" * 5000},
        {"regex": "((a{1,100}){1,100}){1,100}|b" * 50},
        {"grammar": "root ::= " + "(" * 5000},
        {"grammar": "start: " + "a " * 20_000 + '\na: "x"'},
        {"choice": [f"{i} " * 500 for i in range(1024)]},
    ],
    ids=lambda wanted: str(wanted)[:60],
)
def test_what_is_large_takes_no_long_time(wanted: dict[str, Any]) -> None:
    began = time.process_time()
    with suppress(InvalidRequest):
        constraint = request("tiny", TURN, **wanted).constraint
        assert constraint is not None
        assert any(constraint.mask())
    assert time.process_time() - began < 5  # of the processor: the machine may have other work


def test_few_grammars_are_kept() -> None:
    grammars = Grammars(tokenizer_named("tiny"), VOCAB_SIZES["tiny"])
    for number in range(3 * MAX_KEPT):
        grammars.constraint(StructuredOutput("choice", [str(number)]), ends=[0], is_start_of_text=True)
    assert len(grammars._compiled) == MAX_KEPT


LEAP, NO_LEAP = ("2024-02-29", "2000-02-29", "0004-02-29"), ("2023-02-29", "1900-02-29", "2023-02-30", "0000-01-01")


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"format": "date"}, ("2023-02-28", "1999-12-31", *LEAP), ("2023-13-01", "2023-04-31", *NO_LEAP)),
        (
            {"format": "date-time"},
            ("2024-02-29T23:59:59Z", "2023-01-01t00:00:00.5+01:00"),
            ("2023-02-29T00:00:00Z", "2023-01-01T12:00:60Z", "2023-01-01 12:00:00Z", "2023-01-01T12:00:00"),
        ),
        ({"format": "time"}, ("12:00:00Z", "00:00:00.123-05:00"), ("12:00:60Z", "24:00:00Z", "12:00:00")),
        ({"format": "hostname"}, ("a.b-c.d", "localhost"), ("xn--a", "-a", "a..b", "a_b", "a" * 64, "a." * 127 + "a")),
        ({"items": {"format": "date"}, "type": "array"}, (), ()),
    ],
    ids=str,
)
def test_formats_are_exact(schema: dict[str, Any], good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    asked = request("tiny", GOES_ON, json_schema=schema)
    reference = BruteForce(asked, tokenizer_named("tiny"), VOCAB_SIZES["tiny"], is_start_of_text=False)
    assert [text for text in good if not reference.is_complete(json.dumps(text).encode())] == []
    assert [text for text in bad if reference.is_complete(json.dumps(text).encode())] == []
    if "items" in schema:
        assert reference.is_complete(b'["2024-02-29"]')
        assert not reference.is_complete(b'["2023-02-29"]')


@pytest.mark.parametrize("wanted", [{"regex": r"\d"}, {"json_schema": {"type": "string", "pattern": r"^\d$"}}], ids=str)
def test_digits_of_patterns_are_those_of_ascii(wanted: dict[str, Any]) -> None:
    """Unicode has more, and the newest of them no ``re`` of Python knows. JSON schemas take patterns of ECMAScript."""
    asked = request("tiny", GOES_ON, **wanted)
    reference = BruteForce(asked, tokenizer_named("tiny"), VOCAB_SIZES["tiny"], is_start_of_text=False)
    of_digits = {digit: digit if "regex" in wanted else f'"{digit}"' for digit in "07\u0663\U0001ccf0"}
    assert [digit for digit, text in of_digits.items() if reference.is_complete(text.encode())] == ["0", "7"]


def test_names_that_are_no_keywords_stay() -> None:
    """What looks like a keyword within a value or among names of properties is not changed."""
    value = {"format": "date", "minProperties": 9}
    schema = {"properties": {"format": {"const": value}}, "required": ["format"], "additionalProperties": False}
    asked = request("tiny", GOES_ON, json_schema=schema)
    reference = BruteForce(asked, tokenizer_named("tiny"), VOCAB_SIZES["tiny"], is_start_of_text=False)
    assert reference.is_complete(json.dumps({"format": value}).encode())
