"""``fetched.json``: the sizes and the hashes of the files beside it."""

import json
import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from phi3_serve.errors import CheckpointIncomplete
from phi3_serve.fetch.fetched import Fetched
from phi3_serve.fetch.hub_file import HubFile
from phi3_serve.fetch.lock import cannot_write

MANIFEST = "fetched.json"


class Manifest(BaseModel):
    """What this module reads of ``fetched.json``."""

    revision: str
    files: list[HubFile]


def read_manifest(directory: Path) -> Manifest:
    """What ``fetched.json`` of ``directory`` says.

    Raises:
        CheckpointIncomplete: it is not there, or has another form.
    """
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise CheckpointIncomplete(f"{path}: {error.strerror}; `phi3-serve fetch` writes this file") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))  # empty if the whole is wrong
        problem = f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        raise CheckpointIncomplete(f"{path}: {problem}; `phi3-serve fetch` writes this file") from None
    if not any(file.path.endswith(".safetensors") for file in manifest.files):
        raise CheckpointIncomplete(f"{path}: files: none is a .safetensors file; `phi3-serve fetch` writes this file")
    return manifest


def write_manifest(fetched: Fetched) -> None:
    """Write ``fetched.json``; a reader sees the earlier one or the whole new one."""
    path = fetched.directory / MANIFEST
    new = path.with_suffix(".new")
    try:
        new.write_text(json.dumps(fetched.as_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise cannot_write(path, error) from None
