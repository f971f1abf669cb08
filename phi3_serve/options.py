"""Options that several commands of ``phi3-serve`` have."""

import os
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8000"


def _sendable(key: str | None) -> str | None:
    """``key``, if a header of HTTP can carry it. The error does not show it."""
    if key is not None and not key.isprintable():
        raise typer.BadParameter("an API key has no line break and no other control character.")
    return key


def _writable(file: Path | None) -> Path | None:
    """``file``, if it can be written: a wrong name is told before minutes of work."""
    if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
        raise typer.BadParameter(f"{file} cannot be written.")
    return file


Url = Annotated[str, typer.Option(envvar="PHI3_SERVE_URL", help="Where the server listens.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", envvar="PHI3_SERVE_API_KEY", callback=_sendable, help="Where the server asks for one."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Svg = Annotated[
    Path | None,
    typer.Option("--svg", metavar="FILE", callback=_writable, help="Draw the figures as bars into an SVG file."),
]
