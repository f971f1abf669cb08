"""Sizes of launches are those of Triton's functions."""

import pytest
import triton

from phi3_serve.engine.kernels.launch_sizes import cdiv, next_power_of_2


@pytest.mark.parametrize("number", [0, 1, 2, 3, 16, 17, 24, 96, 128, 3072, 32_064])
def test_as_in_triton(number: int) -> None:
    assert next_power_of_2(number) == triton.next_power_of_2(number)
    assert [cdiv(number, divisor) for divisor in (1, 16, 100)] == [
        triton.cdiv(number, divisor) for divisor in (1, 16, 100)
    ]
