"""The engine and its benchmark need only torch, transformers and what these bring: everything else is missing here."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs before each script: the modules that the reference GPU machine lacks are not found.
BARE = """
import sys
from importlib.machinery import PathFinder

MISSING = {"ray", "fastapi", "starlette", "uvicorn", "pydantic", "pydantic_core", "annotated_types",
    "prometheus_client", "aiohttp", "llguidance", "hypothesis", "pytest", "matplotlib", "gguf", "peft", "accelerate",
    "prompt_toolkit", "compressed_tensors", "pynvml"}

class Bare:
    find_distributions = PathFinder.find_distributions

    @staticmethod
    def find_spec(name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top in MISSING or rest.startswith("engine.kernels._cpu_"):
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


def run_bare(directory: Path, script: str) -> str:
    """The output of ``script`` in a process, and in its child processes, without the missing modules."""
    (directory / "sitecustomize.py").write_text(BARE)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{directory}:{ROOT}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.mark.parametrize("module", ["ray", "pydantic", "gguf", "phi3_serve.config.app"])
def test_the_missing_modules_are_missing(tmp_path: Path, module: str) -> None:
    assert "missing" in run_bare(
        tmp_path,
        f"""
        try:
            import {module}
        except ModuleNotFoundError:
            print("missing")
        """,
    )


def test_what_make_gpu_runs_is_there(tmp_path: Path) -> None:
    """With what its functions import, too; that is the machine on which `make gpu` has to run.

    One process imports all, because torch and transformers take more than a second.
    """
    modules = [
        f"tests.gpu.{name}"
        for name in ("__main__", "worker", "checks", "speed", "peers", "time_linear", "prompts", "trouble")
    ]
    modules += ["phi3_serve.engine.engine", "tests.engine.parity", "training.modules"]
    run_bare(tmp_path, f"import {', '.join(modules)}")


@pytest.mark.slow
def test_the_engine_answers_as_transformers_does(tmp_path: Path) -> None:
    out = run_bare(
        tmp_path,
        f"""
        from pathlib import Path
        from phi3_serve.engine.kernels import cpu_library
        from tests.engine.parity import Parity, cases
        from tests.random_checkpoint import Shape

        cpu_library.levels = lambda: ("none",)  # as without a compiler
        parity = Parity(Path({str(tmp_path / "checkpoint")!r}), Shape(num_layers=2))
        print(type(parity.engine._core.runner.kernels).__name__)
        drawn = cases(parity.loaded, 3)
        for verdict, *_ in parity.run([next(drawn) for _ in range(6)]):
            print(verdict)
        parity.close()
        """,
    )
    kernels, *verdicts = out.split("\n")[:-1]
    assert kernels == "ReferenceKernels"
    assert len(verdicts) == 6
    assert "differs" not in verdicts


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    out = run_bare(
        tmp_path,
        """
        from phi3_serve.bench.cli import bench_engine  # as a function: the newest typer reads its options with pydantic

        if __name__ == "__main__":
            bench_engine(shape="probe", concurrency="1", peers="generate", prompt_tokens=8, new_tokens=3, rounds=1)
        """,
    )
    assert "phi3-serve" in out
    assert "generate, one by one" in out
