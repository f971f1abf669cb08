"""The kernels of a GPU compile for GPUs, and their programs fit into each; see ``compiled``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phi3_serve.engine.precision import FP8_SINCE

ROOT = Path(__file__).parents[3]
KERNELS = {
    "_add_b",
    "_add_rms_norm",
    "_attend",
    "_choose",
    "_combine",
    "_dequantize",
    "_multiply_a",
    "_multiply_row",
    "_multiply_rows",
    "_rotate_and_store",
    "_silu_product",
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [75, 86, 89, 90])
def test_the_kernels_compile_for_gpus(capability: int, tmp_path: Path) -> None:
    """And a server with requests compiles nothing that it has not compiled when it started."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.kernels.compiled", str(capability), "--half"],
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    expected = KERNELS | ({"_round_rows"} if divmod(capability, 10) >= FP8_SINCE else set())
    assert {line["kernel"] for line in lines} == expected
