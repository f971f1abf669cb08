"""The library of ``kernels.cpp`` that fits this processor.

It is compiled when the package is installed, once for each level of x86-64 instructions and once for any processor;
where no compiler was at hand there is none, and torch computes instead. It is called through ctypes.
"""

import ctypes
import logging
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("phi3_serve")

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}  # what the functions are named by
MULTIPLY = "multiply_bfloat16"  # only where the processor multiplies bfloat16
MAX_DIMENSIONS = 256  # of a head; kernels.cpp has the same

_ARGUMENTS: dict[str, list[Any]] = {
    "add_rms_norm": [c_void_p] * 4 + [c_int64] * 2 + [c_float, c_int],
    "silu_product": [c_void_p] * 2 + [c_int64] * 2 + [c_int],
    "rotate_and_store": [c_void_p] * 5 + [c_int64] * 6 + [c_int],
    "attend": [c_void_p, c_int64] * 3 + [c_void_p] + [c_int64] * 3 + [c_float, c_void_p, c_int64, c_int],
}


@cache
def kernels() -> ctypes.CDLL | None:
    """The library of the best level that was compiled."""
    paths = [Path(__file__).with_name(f"_cpu_{level}{EXTENSION_SUFFIXES[0]}") for level in levels()]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        logger.warning(
            "%s is missing: torch does what it would, more slowly. "
            "Install phi3-serve again where a C++ compiler (g++) is at hand.",
            paths[0].name,
        )
        return None
    library = ctypes.CDLL(
        str(path)
    )  # torch has loaded the OpenMP runtime by now; the library shares it, and its threads
    for name, types in _ARGUMENTS.items():
        for suffix in SUFFIXES.values():
            _declare(getattr(library, f"{name}_{suffix}"), types)
    if hasattr(library, MULTIPLY):
        _declare(getattr(library, MULTIPLY), [c_void_p] * 4 + [c_int64] * 3 + [c_int])
    return library


def levels() -> tuple[str, ...]:
    """What this processor can run, as far as torch lets it, best first, in the names of the libraries."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX512", "AVX2"):
        return ("any",)
    if capability == "AVX2":
        return ("x86_64_v3", "any")
    multiplies_bfloat16 = ("x86_64_v4_bf16",) if torch.cpu._is_avx512_bf16_supported() else ()
    return (*multiplies_bfloat16, "x86_64_v4", "x86_64_v3", "any")


def _declare(function: "ctypes._NamedFuncPointer", types: list[Any]) -> None:
    function.argtypes, function.restype = types, None
