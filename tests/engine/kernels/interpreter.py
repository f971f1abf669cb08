"""Triton's interpreter, mended for bfloat16: it multiplies the bits in ``tl.dot``, and cuts them off to round."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextmanager
def mended_bfloat16() -> Iterator[None]:
    """While the context lasts, bfloat16 is multiplied and rounded as on a GPU."""
    create_dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def as_float32(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def mended_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return create_dot(self, as_float32(a), as_float32(b), *others)

    def mended_cast(self: Any, source: Any, dtype: Any) -> Any:
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, dtype)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(rounded, dtype.scalar)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = mended_dot, mended_cast
    try:
        yield
    finally:
        InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast
