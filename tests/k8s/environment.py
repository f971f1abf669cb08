"""Which environment variables the code of an image reads. A variable that nothing reads is a typo."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import ray

import phi3_serve

_NAME = re.compile(r"\b[A-Z][A-Z0-9_]{3,}\b|\bRAY_[A-Za-z0-9_]+\b")
OF_PYTHON = {"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"}  # `python --help-env`
OF_TOOLS = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PATH"}  # NVIDIA's container toolkit; the shell
# Ray's core reads RAY_x for each of its settings x (src/ray/common/ray_config_def.h). The binary has the names.
_CORE = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"


def unknown(name: str) -> str | None:
    """Why nothing reads the variable ``name``; None if something does."""
    if name in OF_PYTHON | OF_TOOLS or name in _named_in_sources():
        return None
    if name.startswith("RAY_") and f"\0{name.removeprefix('RAY_')}\0".encode() in _core():
        return None
    return f"environment variable {name}: neither phi3-serve nor Ray, huggingface_hub or Python reads it"


@functools.cache
def _named_in_sources() -> frozenset[str]:
    return frozenset(name for path in _sources() for name in _NAME.findall(path.read_text(errors="replace")))


def _sources() -> Iterator[Path]:
    of_ray = Path(ray.__file__).parent
    yield from Path(phi3_serve.__file__).parent.rglob("*.py")
    yield from (of_ray / "serve" / "_private").glob("*.py")
    yield from (of_ray / "_private").glob("*.py")
    yield Path(huggingface_hub.__file__).parent / "constants.py"


@functools.cache
def _core() -> bytes:
    return _CORE.read_bytes()
