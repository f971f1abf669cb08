"""The options of torch's allocator in the environment of a process."""

import subprocess
import sys

import pytest

from phi3_serve.engine.allocator_options import set_allocator_options


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_allocator_options_of_the_operator_stay(name: str) -> None:
    environment = {name: "max_split_size_mb:512", "PATH": "/bin"}
    set_allocator_options(environment)
    assert environment == {name: "max_split_size_mb:512", "PATH": "/bin"}


SCRIPT = """
import os, sys, warnings
from phi3_serve.engine.allocator_options import set_allocator_options
warnings.simplefilter("error")
assert "torch" not in sys.modules
set_allocator_options(os.environ)
import torch
print(os.environ["PYTORCH_ALLOC_CONF"], float(torch.ones(3).sum()))
"""


@pytest.mark.thorough
def test_segments_grow_and_torch_takes_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("expandable_segments:True 3.0\n", "")
