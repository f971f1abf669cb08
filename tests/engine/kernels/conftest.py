"""What the tests of the kernels share."""

from collections.abc import Iterator

import pytest

from tests.engine.kernels.interpreter import mended_bfloat16


@pytest.fixture(scope="session", autouse=True)
def _bfloat16_in_the_interpreter() -> Iterator[None]:
    with mended_bfloat16():
        yield
