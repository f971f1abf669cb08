"""What the tests of the kernels share."""

from collections.abc import Iterator

import pytest

from tests.engine.kernels.interpreter import mended_interpreter


@pytest.fixture(scope="session", autouse=True)
def _mended_interpreter() -> Iterator[None]:
    with mended_interpreter():
        yield
