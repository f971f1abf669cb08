"""The dtype that weights are loaded in, for each kind of chip."""

import pytest

from phi3_serve.engine.precision import dtype_to_load

V100, T4, A100, L4, H100 = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0)


@pytest.mark.parametrize(
    ("stored", "capability", "expected"),
    [
        ("bfloat16", None, "float32"),
        (None, None, "float32"),
        ("bfloat16", V100, "float16"),
        ("bfloat16", T4, "float16"),
        (None, T4, "float16"),
        ("float16", T4, "auto"),
        ("float32", T4, "auto"),
        ("bfloat16", A100, "auto"),
        ("bfloat16", L4, "auto"),
        ("bfloat16", H100, "auto"),
        ("float32", H100, "auto"),
        (None, H100, "auto"),
    ],
)
def test_auto(stored: str | None, capability: tuple[int, int] | None, expected: str) -> None:
    assert dtype_to_load("auto", stored=stored, capability=capability) == expected


@pytest.mark.parametrize("capability", [None, T4, H100])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "float16"])
def test_what_the_operator_wants_is_taken(wanted: str, capability: tuple[int, int] | None) -> None:
    assert dtype_to_load(wanted, stored="bfloat16", capability=capability) == wanted
