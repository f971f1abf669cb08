"""Triton's interpreter keeps bfloat16 as the integers of its bits, and multiplies these in ``tl.dot``."""

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@pytest.fixture(scope="session", autouse=True)
def _dot_of_bfloat16() -> None:
    create_dot = InterpreterBuilder.create_dot

    def as_float32(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def mended(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return create_dot(self, as_float32(a), as_float32(b), *others)

    InterpreterBuilder.create_dot = mended
