"""Conversations in files. Each file is the body of a request to ``/v1/chat/completions``."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from phi3_serve.errors import Phi3ServeError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SUFFIX = ".json"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    messages: list[_Message]
    generate_kwargs: dict[str, Any] = {}


class SavedConversations:
    """The conversations in one directory, by name. A name with a ``/`` is the path of a file elsewhere."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own: set[Path] = set()  # files that this process has written or read

    def save(self, name: str, body: dict[str, Any]) -> Path:
        """Write ``body``, which only this user can read. Returns the path.

        Raises:
            Phi3ServeError: the name cannot be used, or the file exists and is not from here, or it cannot be written.
        """
        path = self._path(name)
        if path.exists() and path not in self._own:
            raise Phi3ServeError(f"{path} exists. Save under another name, or delete it.")
        text = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
        try:
            if path.parent == self._directory:
                path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
            unfinished = path.with_name(f"{path.name}.unfinished-{os.getpid()}")
            unfinished.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        except OSError as error:
            raise Phi3ServeError(f"{path}: cannot be written: {error.strerror}") from None
        self._own.add(path)
        return path

    def load(self, name: str) -> dict[str, Any]:
        """The body that was saved.

        Raises:
            Phi3ServeError: there is no such file, it cannot be read, or it is no conversation.
        """
        path = self._path(name)
        try:
            body = _Body.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            names = ", ".join(self.names())
            raise Phi3ServeError(f"{path} does not exist; saved are: {names or 'none'}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise Phi3ServeError(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise Phi3ServeError(
                f"{path} is not a conversation: {place + ': ' if place else ''}{problem['msg']}"
            ) from None
        self._own.add(path)
        return body.model_dump()

    def names(self) -> list[str]:
        """The saved names, in the order of the alphabet."""
        return sorted(path.stem for path in self._directory.glob(f"*{_SUFFIX}"))

    def _path(self, name: str) -> Path:
        if "/" in name:
            return Path(name).expanduser().absolute()
        if not _NAME.fullmatch(name):
            raise Phi3ServeError(
                f"`{name}` cannot be a name: 1 to 64 letters, digits and . _ - are allowed, or a path with a /."
            )
        return self._directory / f"{name}{_SUFFIX}"
