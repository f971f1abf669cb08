"""Triton's interpreter, mended: it multiplies the bits of bfloat16, cuts them and those of float8 off to round, and is
needlessly slow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


@contextmanager
def mended_interpreter() -> Iterator[None]:
    """While the context lasts, bfloat16 and float8 are as on a GPU, and kernels run in less time."""
    with _mended_bfloat16(), _patched_once():
        yield


@contextmanager
def _mended_bfloat16() -> Iterator[None]:
    create_dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl
    fp_to_fp = InterpreterBuilder.create_fp_to_fp

    def as_float32(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def mended_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return create_dot(self, as_float32(a), as_float32(b), *others)

    def mended_cast(self: Any, source: Any, dtype: Any) -> Any:
        kinds = (source.dtype.scalar, dtype.scalar)
        if kinds == (tl.int8, tl.bfloat16):
            return mended_cast(self, cast(self, source, tl.float32), dtype)
        if kinds != (tl.float32, tl.bfloat16):
            return cast(self, source, dtype)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(rounded, dtype.scalar)

    def mended_fp_to_fp(self: Any, source: Any, dtype: Any, rounding: Any) -> Any:
        if source.dtype.scalar == tl.float8e4nv:
            meant = torch.from_numpy(source.data.copy()).view(torch.float8_e4m3fn).float().numpy()
            in_float32 = TensorHandle(meant, tl.float32)
            return in_float32 if dtype.scalar == tl.float32 else mended_cast(self, in_float32, dtype)
        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.float8e4nv):
            return fp_to_fp(self, source, dtype, rounding)
        rounded = torch.from_numpy(source.data.copy()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
        return TensorHandle(rounded, dtype.scalar)

    InterpreterBuilder.create_fp_to_fp = mended_fp_to_fp
    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = mended_dot, mended_cast
    try:
        yield
    finally:
        InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = create_dot, cast
        InterpreterBuilder.create_fp_to_fp = fp_to_fp


@contextmanager
def _patched_once() -> Iterator[None]:
    """The language is patched once in each launch, not at each call of a function by a kernel.

    Triton 3.8 goes through all members of the language at each call. That takes a third of the time of a kernel.
    """
    launch, patch = GridExecutor.__call__, interpreter._patch_lang
    patched: set[int] = set()  # modules, by the addresses of their names

    def mended_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        patched.clear()
        launch(self, *args, **kwargs)

    def patch_once(fn: Any) -> Any:
        if id(fn.__globals__) not in patched:
            patched.add(id(fn.__globals__))
            return patch(fn)
        return None  # only the launch restores what it has patched

    GridExecutor.__call__, interpreter._patch_lang = mended_launch, patch_once
    try:
        yield
    finally:
        GridExecutor.__call__, interpreter._patch_lang = launch, patch
