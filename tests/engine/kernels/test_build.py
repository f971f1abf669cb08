"""A library is compiled anew when a file changes that its compiler reads, and the source archive has every such file."""

import os
import platform
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
CSRC = "phi3_serve/engine/kernels/csrc"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LIBRARIES: list[dict[str, Any]] = PROJECT["tool"]["setuptools"]["ext-modules"]


@pytest.mark.skipif(
    shutil.which("g++") is None or platform.machine() != "x86_64", reason="no compiler for x86-64 to ask"
)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library["name"].rpartition("_cpu_")[2])
def test_depends_are_what_the_compiler_reads(library: dict[str, Any]) -> None:
    command = ["g++", *library["extra-compile-args"], "-MM", *library["sources"]]
    rule = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    read = {os.path.normpath(path) for path in rule.replace("\\\n", " ").split(":", 1)[1].split()}
    assert read == {*library["sources"], *library["depends"]}


def test_every_file_belongs_to_a_library() -> None:
    listed = {path for library in LIBRARIES for path in (*library["sources"], *library["depends"])}
    assert listed == {str(path.relative_to(ROOT)) for path in (ROOT / CSRC).rglob("*") if path.is_file()}
