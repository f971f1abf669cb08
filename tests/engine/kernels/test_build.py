"""A library is compiled anew when a file changes that its compiler reads, and the source archive has every such file."""

import os
import platform
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
from setuptools import Extension

ROOT = Path(__file__).parents[3]
CSRC = "phi3_serve/engine/kernels/csrc"
LIBRARIES: list[Extension] = runpy.run_path(str(ROOT / "setup.py"))["LIBRARIES"]
NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="no compiler for x86-64 to ask"
)


def read_by_compiler(library: Extension) -> set[str]:
    command = ["g++", *library.extra_compile_args, "-MM", *library.sources]
    rule = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {os.path.normpath(path) for path in rule.replace("\\\n", " ").split(":", 1)[1].split()}


@NEEDS_COMPILER
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name.rpartition("_cpu_")[2])
def test_depends_have_what_the_compiler_reads(library: Extension) -> None:
    assert read_by_compiler(library) <= {*library.sources, *library.depends}


@NEEDS_COMPILER
def test_every_file_is_read() -> None:
    read = set().union(*map(read_by_compiler, LIBRARIES))
    assert read == {str(path.relative_to(ROOT)) for path in (ROOT / CSRC).rglob("*") if path.is_file()}


def test_every_file_belongs_to_a_library() -> None:
    listed = {path for library in LIBRARIES for path in (*library.sources, *library.depends)}
    assert listed == {str(path.relative_to(ROOT)) for path in (ROOT / CSRC).rglob("*") if path.is_file()}
