"""The Dockerfile, carried out without Docker: what gets into the image, and what runs there.

``make image`` runs the server of the image, too, and asks it over a network.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.image.context import context_files
from tests.image.dockerfile import stages_of
from tests.image.scratch import ROOT, Builder, Image, inside, packages_of_apt

KERNELS_USED = """
import os, phi3_serve
from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loader import load
loaded = load("phi-3-tiny", str(EMBEDDED_TINY), None, device="cpu", dtype="float32")
engine = Engine(loaded, stuck_after_s=60, on_breakdown=print)
print(os.getuid(), os.getcwd(), phi3_serve.__file__, engine.info.kernels)
engine.close()
"""


def test_nothing_of_the_host_gets_into_the_build(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for path in ("phi3_serve/cli.py", "constraints.txt", "tests/x.py", ".venv/x", "training/x.py", ".env"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).touch()
    kernels = project / "phi3_serve/engine/kernels"
    for directory in ("csrc", "__pycache__"):
        (kernels / directory).mkdir(parents=True)
    for name in ("csrc/cpu.cpp", "_cpu_any.cpython-311-x86_64-linux-gnu.so", "__pycache__/cpu.cpython-311.pyc"):
        (kernels / name).touch()
    shutil.copy(ROOT / ".dockerignore", project)
    sources = {"phi3_serve/cli.py", "phi3_serve/engine/kernels/csrc/cpu.cpp"}
    assert set(context_files(project)) == {*sources, "constraints.txt"}


def test_every_copied_file_is_in_the_context() -> None:
    files = set(context_files(ROOT))
    for stage in stages_of(ROOT / "Dockerfile").values():
        for copy in (one for one in stage.instructions if one.name == "COPY" and "--from=" not in one.text):
            for source in copy.words[:-1]:
                assert any(file == source or file.startswith(source) for file in files), source


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    return Builder(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def cpu(builder: Builder) -> Image:
    return builder.build("cpu")


@pytest.mark.slow
def test_it_runs_the_installed_package_with_compiled_kernels_and_without_root(cpu: Image) -> None:
    user, directory, package, kernels = inside(cpu, ["python", "-c", KERNELS_USED]).splitlines()[-1].split(" ", 3)
    assert (user, directory) == ("1000", "/home/ray")
    assert re.fullmatch(r"/usr/local/lib/python3\.\d+/site-packages/phi3_serve/__init__\.py", package)
    assert re.fullmatch(r"cpu \(.+\)", kernels)


@pytest.mark.slow
def test_its_command_is_found_and_its_config_is_there(cpu: Image) -> None:
    assert cpu.entrypoint == ["tini", "--"]
    assert cpu.command[-2:] == ["--host", "0.0.0.0"]  # otherwise nobody outside of the container reaches it
    command, config = cpu.command[0], cpu.command[2]
    assert inside(cpu, ["which", command]).strip() == f"/usr/local/bin/{command}"
    assert inside(cpu, ["cat", config]) == (ROOT / "serve_config.yaml").read_text()
    launcher = cpu.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    assert inside(cpu, ["which", launcher]).strip() == launcher
    assert {"tini", "wget"} <= packages_of_apt(cpu)
    assert "g++" not in packages_of_apt(cpu)


@pytest.mark.slow
def test_the_image_for_a_gpu_has_a_compiler_for_triton(builder: Builder) -> None:
    assert "gcc" in {word for one in stages_of(ROOT / "Dockerfile")["cuda"].instructions for word in one.text.split()}


def test_the_constraints_for_cuda_replace_those_of_the_same_name(tmp_path: Path) -> None:
    (run,) = (one for one in stages_of(ROOT / "Dockerfile")["cuda"].instructions if "/tmp/replaced" in one.text)
    for name in ("constraints.txt", "constraints-cuda.txt"):
        shutil.copy(ROOT / name, tmp_path)
    script = run.text.split("&& pip install")[0].rstrip().replace("/tmp/", f"{tmp_path}/")
    subprocess.run(["/bin/sh", "-ec", script], check=True)
    rows = [row for row in (tmp_path / "all.txt").read_text().splitlines() if row and not row.startswith("#")]
    names = [row.split("==")[0] for row in rows]
    assert len(names) == len(set(names))
    assert "triton==3.7.1" in rows
    assert "torch==2.13.0" in rows
    assert "pytest==9.2.0" in rows
