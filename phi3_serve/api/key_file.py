"""API keys in a file, such as a Secret of Kubernetes that is mounted: read at the start, and again after a change."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from pydantic import ValidationError

from phi3_serve import strict_yaml
from phi3_serve.config.api_keys import AuthConfig
from phi3_serve.errors import Phi3ServeError

SECONDS_BETWEEN_LOOKS = 5.0


class KeyFileError(Phi3ServeError):
    """The file cannot be read, or holds something else than API keys."""


class KeyFile:
    """The file at ``path``; a new file may replace it at any time."""

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._clock = clock
        self._seen: tuple[int, int, int] | None = None
        self._looked_at = float("-inf")

    def read(self) -> AuthConfig:
        """The keys in the file.

        Raises:
            KeyFileError: in one line, with the path.
        """
        self._seen, self._looked_at = self._version(), self._clock()
        try:
            content = strict_yaml.load(self._path.read_text(encoding="utf-8"))
            keys = AuthConfig.model_validate({} if content is None else content)
        except OSError as error:
            raise KeyFileError(f"auth.file: {self._path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise KeyFileError(f"auth.file: {self._path}: is not YAML: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            message = first["msg"].removeprefix("Value error, ")
            raise KeyFileError(f"auth.file: {self._path}: {where}: {message}") from None
        if keys.file is not None:
            raise KeyFileError(f"auth.file: {self._path}: file: must not name another file")
        return keys

    def has_changed(self) -> bool:
        """Whether the file is another one than at the last ``read``. It is looked at every five seconds at most."""
        if self._clock() - self._looked_at < SECONDS_BETWEEN_LOOKS:
            return False
        self._looked_at = self._clock()
        return self._version() != self._seen

    def _version(self) -> tuple[int, int, int] | None:
        """Inode, time in nanoseconds and size; None if there is no file.

        Links are followed: Kubernetes changes a link.
        """
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size
