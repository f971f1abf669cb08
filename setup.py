"""The C++ kernels: a library for each level of instructions. Everything else about the project is in pyproject.toml.

``engine/kernels/cpu_library.py`` takes one of them when the engine starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
CSRC = ROOT / "phi3_serve/engine/kernels/csrc"

# -fassociative-math and the flags that it needs let the compiler vectorise sums.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-fno-exceptions",
    "-fno-rtti",
]
V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
LEVELS: Mapping[str, Sequence[str]] = {
    "any": [],
    "x86_64_v3": ["-march=x86-64-v3"],
    "x86_64_v4": V4,
    "x86_64_v4_bf16": [*V4, "-mavx512bf16"],
    "x86_64_v4_amx": [*V4, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}


def library(level: str, flags: Sequence[str]) -> Extension:
    """The library of ``level``. Without a compiler for it, it is left out."""
    return Extension(
        f"phi3_serve.engine.kernels._cpu_{level}",
        [relative(CSRC / f"levels/{level}.cpp")],
        depends=[relative(path) for path in read_by(level)],
        extra_compile_args=[*FLAGS, *flags],
        extra_link_args=["-fopenmp"],
        language="c++",
        optional=True,
    )


def read_by(level: str) -> Iterator[Path]:
    """What the compiler may read besides the source of ``level``; a change of it compiles the library anew."""
    yield CSRC / "cpu.cpp"
    yield from sorted(CSRC.glob("*.h"))
    if level.endswith("_amx"):
        yield from sorted((CSRC / "amx").glob("*.h"))


def relative(path: Path) -> str:
    """As setuptools wants paths."""
    return path.relative_to(ROOT).as_posix()


LIBRARIES = [library(level, flags) for level, flags in LEVELS.items()]

if __name__ == "__main__":
    setup(ext_modules=LIBRARIES, options={"build_ext": {"parallel": True}})  # each takes 400 to 500 MB
