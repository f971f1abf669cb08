"""The dtype that weights are loaded in, for each kind of chip."""

import pytest

from phi3_serve.engine.precision import dtype_to_load, problem_of_kv_cache_dtype, problem_of_quantization

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


@pytest.mark.parametrize("capability", [None, T4, A100, L4, H100])
def test_which_devices_have_which_cache(capability: tuple[int, int] | None) -> None:
    assert problem_of_kv_cache_dtype("auto", capability) is None
    problem = problem_of_kv_cache_dtype("fp8", capability)
    assert problem_of_kv_cache_dtype("int8", capability) is None
    if capability in (L4, H100):
        assert problem is None
    elif capability == A100:
        assert problem == (
            "kv_cache_dtype is fp8, which a GPU of compute capability 8.0 does not have; allowed are auto and int8"
        )
    elif capability is None:
        assert problem == "kv_cache_dtype is fp8, which a CPU does not have; allowed are auto and int8"


@pytest.mark.parametrize("capability", [None, T4, A100, L4, H100])
def test_which_devices_have_weights_in_fp8(capability: tuple[int, int] | None) -> None:
    assert all(problem_of_quantization(wanted, capability) is None for wanted in ("none", "int8", "int4", "auto"))
    problem = problem_of_quantization("fp8", capability)
    if capability in (L4, H100):
        assert problem is None
    else:
        device = "a CPU" if capability is None else "a GPU of compute capability {}.{}".format(*capability)
        assert problem == (
            f"quantization is fp8, which {device} does not have; it needs a GPU of compute capability 8.9 or higher, "
            "otherwise allowed are none, int8, int4 and auto"
        )
