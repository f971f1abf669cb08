"""Small JSON files that a reader finds whole, whatever ends the writer."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file at ``path``. The new content is on the disk before it has the name.

    Raises:
        OSError: it cannot be written; the former content stays.
    """
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with new.open("w", encoding="ascii") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any] | None:
    """The content of the file at ``path``; None if there is none.

    Raises:
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def as_object(cls: type[T], content: Mapping[str, Any]) -> T | None:
    """An object of the dataclass ``cls``; None if ``content`` lacks a field that ``cls`` needs.

    Fields that ``cls`` lacks are left out: a later version has written them.
    """
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # every dataclass
    try:
        return cls(**{name: value for name, value in content.items() if name in names})
    except TypeError:
        return None
