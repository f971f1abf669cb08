import time

import pytest
import torch

from phi3_serve.engine import linear
from phi3_serve.engine.linear import compute_dtype, fastest_form, packed, plain

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

    monkeypatch.setattr(linear, "packed", slow)
    assert fastest_form(weight) is plain
    monkeypatch.setattr(linear, "packed", packed)
    monkeypatch.setattr(linear, "plain", slow)
    assert fastest_form(weight) is packed


def test_a_form_that_this_build_lacks_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: torch.Tensor) -> linear.Linear:
        raise RuntimeError("mkldnn: no")

    monkeypatch.setattr(linear, "packed", missing)
    assert fastest_form(torch.randn(8, 8)) is plain
