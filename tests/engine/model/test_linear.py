import time
from collections.abc import Callable

import pytest
import torch

from phi3_serve.engine.model import linear
from phi3_serve.engine.model.linear import compute_dtype, fastest_form, packed, plain

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("rows", [1, 3, 16, 100])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (24, 17), (96, 704)])
def test_packed_layers_compute_the_same(rows: int, inputs: int, outputs: int) -> None:
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    assert torch.allclose(packed(weight)(x), plain(weight)(x), atol=1e-4)


def test_half_precision_is_computed_where_the_processor_can(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_native, computed in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda is_native=is_native: is_native)
        assert compute_dtype(torch.bfloat16, CPU) == computed
        assert compute_dtype(torch.float16, CPU) == torch.float32
        assert compute_dtype(torch.float32, CPU) == torch.float32
        assert compute_dtype(torch.float16, CUDA) == torch.float16
        assert compute_dtype(torch.bfloat16, CUDA) == torch.bfloat16


def test_the_trial_takes_the_faster_form(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(8, 8)

    def slow(weight: torch.Tensor) -> linear.Linear:
        def layer(x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.005)
            return x

        return layer

    monkeypatch.setattr(linear, "FORMS", (plain, slow))
    assert fastest_form([weight], torch.float32) is plain
    monkeypatch.setattr(linear, "FORMS", (slow, packed))
    assert fastest_form([weight], torch.float32) is packed


def test_a_form_that_is_slow_for_many_rows_alone_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as fast for 1 and 16 rows, ten times as slow for 128: prompts would wait."""
    taken = {"steady": {1: 2.0, 16: 2.0, 128: 2.0}, "hasty": {1: 1.0, 16: 1.0, 128: 20.0}}

    def form_of(name: str) -> Callable[[torch.Tensor], linear.Linear]:
        def form(weight: torch.Tensor) -> linear.Linear:
            return lambda x: x.new_full((1,), taken[name][len(x)])

        form.__name__ = name
        return form

    forms = (form_of("hasty"), form_of("steady"))
    monkeypatch.setattr(linear, "FORMS", forms)
    monkeypatch.setattr(linear, "_seconds", lambda layers, weight, rows: float(layers[0](weight.new_zeros(rows, 8))))
    assert fastest_form([torch.randn(8, 8)], torch.float32) is forms[1]


def test_a_form_that_this_build_lacks_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: torch.Tensor) -> linear.Linear:
        raise RuntimeError("mkldnn: no")

    monkeypatch.setattr(linear, "FORMS", (missing, plain))
    assert fastest_form([torch.randn(8, 8)], torch.float32) is plain
