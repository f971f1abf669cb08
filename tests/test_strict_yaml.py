"""A key that is given twice is refused, however it is spelled."""

import pytest
import yaml

from phi3_serve.strict_yaml import load


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\na: 1", "a"),
        ("yes: 1\ntrue: 2", "true"),
        ("1: a\n0x1: b", "0x1"),
        ("~: 1\nnull: 2", "null"),
        ("&a x: 1\n*a : 2", "x"),
    ],
)
def test_a_key_is_given_once(text: str, key: str) -> None:
    with pytest.raises(yaml.YAMLError, match=f"the key `{key}` is in line 1 and again in line [12]$"):
        load(text)


def test_a_merge_may_be_overridden_and_a_text_is_no_number() -> None:
    assert load("a: &all {x: 1, y: 2}\nb:\n  <<: *all\n  x: 3") == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}
    assert load("'1': a\n1: b") == {"1": "a", 1: "b"}
