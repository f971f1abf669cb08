"""What the tests of the kernels share."""

from collections.abc import Iterator

import pytest

from phi3_serve.engine.kernels import cpu_library as library_module
from phi3_serve.engine.kernels.cpu_library import cpu_library, levels
from tests.engine.kernels.interpreter import mended_interpreter


@pytest.fixture(scope="session", autouse=True)
def _mended_interpreter() -> Iterator[None]:
    with mended_interpreter():
        yield


@pytest.fixture(params=levels())
def each_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every kernel of this test is that of one level."""
    monkeypatch.setattr(library_module, "levels", lambda: (request.param,))
    cpu_library.cache_clear()
    yield str(request.param)
    cpu_library.cache_clear()
