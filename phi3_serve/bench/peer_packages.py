"""Packages of peers that are no dependency of phi3-serve."""

import subprocess
import sys
from collections.abc import Mapping

# by peer: the module, and the package that has it
PACKAGES: Mapping[str, tuple[str, str]] = {
    "vllm": ("vllm", "vllm"),
    "llamacpp": ("llama_cpp", "llama-cpp-python"),
}


def missing(peer: str) -> str | None:
    """Why ``peer`` cannot be measured, and what to install, in one sentence; None if its module can be imported.

    The import runs in another process: it may set up a device, or end the process.
    """
    if peer not in PACKAGES:
        return None
    module, package = PACKAGES[peer]
    done = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return (
        f"{peer} needs the package {package}, which cannot be imported ({lines[-1]}); "
        f"`pip install {package}` installs it and what it depends on."
    )
