"""Written characters stay written where the operation is known, and no other character ever becomes one."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3_serve.text.traced import Traced, joined, written, written_matches

TEMPLATE, USER = "<|AB> \n", "xyz> \n"  # only the template has letters A and B, only the user x, y and z
# As in a template: what it wrote, what a user wrote, and what it has joined of both.
single = st.text(TEMPLATE, max_size=5).map(written) | st.text(USER, max_size=5)
mixed = st.lists(single, max_size=6).map(joined)
string = single | mixed
OPERATIONS: list[Callable[[str, str, int], Any]] = [
    lambda a, b, n: a + b,
    lambda a, b, n: a * n,
    lambda a, b, n: n * a,
    lambda a, b, n: a[n:],
    lambda a, b, n: a[-n:n],
    lambda a, b, n: a[::-1],
    lambda a, b, n: a[n] if n < len(a) else a[:1],
    lambda a, b, n: a.strip(),
    lambda a, b, n: a.lstrip("<x"),
    lambda a, b, n: a.rstrip(b),
    lambda a, b, n: a.join([b, a, b]),
    lambda a, b, n: a.replace("A", b),
    lambda a, b, n: a.replace("x", ""),
    lambda a, b, n: a.split(b or " ")[-1],
    lambda a, b, n: a.removesuffix(b),
    lambda a, b, n: a.swapcase().swapcase(),
    lambda a, b, n: written("%s|") % a,
    lambda a, b, n: a.center(n + len(a)),
    lambda a, b, n: str(a),
    lambda a, b, n: f"{a}{b}",
    lambda a, b, n: "".join([a, b]),
]


def written_characters(text: str) -> str:
    return "".join(match[0] for match in written_matches(text, re.compile("(?s)."))) if isinstance(text, Traced) else ""


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(string, string, st.integers(0, 4), st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=4))
def test_operations_give_what_those_of_str_give_and_no_character_of_a_user_becomes_written(
    a: str, b: str, n: int, operations: list[Callable[[str, str, int], Any]]
) -> None:
    plain_a, plain_b = "".join([a, ""]), "".join([b, ""])
    for operation in operations:
        a, plain_a = operation(a, b, n), operation(plain_a, plain_b, n)
        assert a == plain_a
        assert not set(written_characters(a)) & set("xyz")


@pytest.mark.thorough
@settings(max_examples=500, deadline=None)
@given(mixed, mixed, st.integers(0, 4))
def test_the_operations_of_templates_lose_no_written_character(a: Traced, b: Traced, n: int) -> None:
    for text in (a + b, "x" + a, a + "x", a[n:], a[:-1], a.strip(), a.rstrip("\n"), a * n, a.join([b, "x"]), str(a)):
        assert isinstance(text, Traced)
        assert [c for c in written_characters(text) if c in "AB"] == [c for c in text if c in "AB"]


def test_a_match_lies_within_what_is_written() -> None:
    end = re.compile(re.escape("<|end|>"))
    text = written("<|end|>") + "<|end|>" + written("<|en") + "d|>" + written("<|") + written("end") + written("|>")
    assert [match.span() for match in written_matches(text, end)] == [(0, 7), (21, 28)]


@pytest.mark.parametrize("name", ["_written", "__class__", "__new__"])
def test_a_template_cannot_reach_the_origins(name: str) -> None:
    from jinja2.exceptions import SecurityError

    from phi3_serve.errors import InvalidRequest
    from phi3_serve.text.jinja_template import JinjaTemplate

    template = JinjaTemplate(f"{{{{ 'a'.{name}.x }}}}", {}, file="template")
    with pytest.raises(InvalidRequest, match="unsafe") as caught:
        template.render([])
    assert isinstance(caught.value.__context__, SecurityError)
