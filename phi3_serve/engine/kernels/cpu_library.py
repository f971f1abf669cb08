"""The compiled library of ``csrc/cpu.cpp`` for this processor, called through ctypes.

It is compiled when the package is installed, once for each level of x86-64 instructions and once for any processor.
Without a compiler there is no library, and the reference kernels are used.
"""

import ctypes
import logging
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from phi3_serve.engine.kernels.contract import BLOCKED_FORMS

logger = logging.getLogger("phi3_serve")

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # of the function names
MULTIPLY = "multiply_bfloat16"  # only in the library for processors with bfloat16 instructions
MULTIPLY_SPLIT = "multiply_split_bfloat16"  # only in the library for processors with AMX
MULTIPLY_HALVES = {torch.bfloat16: "multiply_bfloat16_float32", torch.float16: "multiply_float16_float32"}
QUANTIZE = {(bits, suffix): f"quantize_int{bits}_{suffix}" for bits in (8, 4) for suffix in SUFFIXES.values()}
_FORMATS = {
    (8, torch.float32): "int8",
    (4, torch.bfloat16): "int4",
    (4, torch.float16): "int4_float16_scales",
    (4, torch.float32): "int4_float_scales",
}
MULTIPLY_QUANTIZED = {  # by bits, dtype of the scales, and suffix
    (*format, suffix): f"multiply_{name}_{suffix}" for format, name in _FORMATS.items() for suffix in SUFFIXES.values()
}
MULTIPLY_BLOCKED = {  # by bits, inputs of a group, whether there are minima, and suffix
    (bits, group, has_minima, suffix): f"multiply_blocked_int{bits}_{group}{'_minima' if has_minima else ''}_{suffix}"
    for bits, forms in BLOCKED_FORMS.items()
    for group, has_minima in forms
    for suffix in SUFFIXES.values()
}
MAX_HEAD_DIM = 256  # larger heads are not tested

_STEM = "_cpu_"  # of the file names, before the level

_ARGUMENTS: dict[str, list[Any]] = {
    "add_rms_norm": [c_void_p] * 4 + [c_int64] * 2 + [c_float, c_int],
    "silu_product": [c_void_p] * 2 + [c_int64] * 2 + [c_int],
    "rotate_and_store": [c_void_p] * 6 + [c_int64] * 6 + [c_int],
    "add_low_rank": [
        *(c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64),
        *(c_void_p, c_int64, c_void_p, c_int64, c_int),
    ],
    "attend": [c_void_p, c_int64] * 2
    + [c_void_p] * 2
    + [c_int64, c_void_p]
    + [c_int64] * 3
    + [c_float, c_void_p, c_int64, c_int],
}
_OVER_CACHES = ("rotate_and_store", "attend")  # with _int8 in their names over a cache in 8 bits
_ARGUMENTS_OF_MULTIPLY: list[Any] = [c_void_p] * 4 + [c_int64] * 3 + [c_int]


@cache
def cpu_library() -> ctypes.CDLL | None:
    """The library for the highest instruction level that was compiled; None if there is none."""
    paths = [Path(__file__).with_name(f"{_STEM}{level}{EXTENSION_SUFFIXES[0]}") for level in levels()]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        logger.warning(
            "%s is missing: falling back to slower torch operations. "
            "To compile it, install a C++ compiler (g++), then install phi3-serve again.",
            paths[0].name,
        )
        return None
    library = ctypes.CDLL(str(path))  # shares the OpenMP runtime that torch has loaded, and its threads
    functions = _functions()
    if missing := [name for name in functions if not hasattr(library, name)]:
        logger.warning(
            "%s was compiled for another version, without %s: falling back to slower torch operations. "
            "Install phi3-serve again.",
            path.name,
            missing[0],
        )
        return None
    for name, types in functions.items():
        _declare(getattr(library, name), types)
    for name in (MULTIPLY, MULTIPLY_SPLIT):
        if hasattr(library, name):
            _declare(getattr(library, name), _ARGUMENTS_OF_MULTIPLY)
    return library


def _functions() -> dict[str, list[Any]]:
    """The functions that every library has, and the types of their arguments."""
    functions = {f"{name}_{suffix}": types for name, types in _ARGUMENTS.items() for suffix in SUFFIXES.values()}
    functions |= {f"{name}_int8_{suffix}": _ARGUMENTS[name] for name in _OVER_CACHES for suffix in SUFFIXES.values()}
    functions |= dict.fromkeys(QUANTIZE.values(), [c_void_p] * 3 + [c_int64] * 2 + [c_int])
    functions |= dict.fromkeys([*MULTIPLY_QUANTIZED.values(), *MULTIPLY_HALVES.values()], _ARGUMENTS_OF_MULTIPLY)
    return functions | {name: [*_ARGUMENTS_OF_MULTIPLY, c_int64] for name in MULTIPLY_BLOCKED.values()}


def levels() -> tuple[str, ...]:
    """The instruction levels of this processor that torch uses, the highest first, as in the libraries' names."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX512", "AVX2"):
        return ("any",)
    if capability == "AVX2":
        return ("x86_64_v3", "any")
    if not torch.cpu._is_avx512_bf16_supported():
        return ("x86_64_v4", "x86_64_v3", "any")
    return (*(("x86_64_v4_amx",) if _has_tiles() else ()), "x86_64_v4_bf16", "x86_64_v4", "x86_64_v3", "any")


def _has_tiles() -> bool:
    """Whether this process may use AMX for bfloat16. Linux allows it on request, which torch makes in ``_init_amx``."""
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return False
    return bool(torch.cpu.get_capabilities().get("amx_bf16")) and torch.cpu._init_amx()


def level_of(library: ctypes.CDLL) -> str:
    """The level of x86-64 instructions that ``library`` was compiled for, or ``any`` processor."""
    return Path(library._name).name.removeprefix(_STEM).split(".")[0].replace("x86_64", "x86-64").replace("_", "-")


def _declare(function: "ctypes._NamedFuncPointer", types: list[Any]) -> None:
    function.argtypes, function.restype = types, None
