"""Progress of long work as log lines: bytes, percent, and the name of the work."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from typing import Any

from tqdm import tqdm

logger = logging.getLogger("phi3_serve")

SECONDS_BETWEEN_LINES = 2.0


_listeners: list[Callable[[str], None]] = []


@contextmanager
def told_to(listener: Callable[[str], None]) -> Iterator[None]:
    """While the context lasts, ``listener`` gets each line of progress too."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def human_bytes(count: float) -> str:
    """``count`` bytes with a suitable unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Progress:
    """Counts bytes towards a total and logs a line every few seconds, and at the end."""

    def __init__(self, what: str, total_bytes: int) -> None:
        self.what = what
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._begun = self._last_line = time.monotonic()

    def advance(self, count: int) -> None:
        """Add ``count`` bytes."""
        self.done_bytes += count
        if time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._log()

    def finish(self) -> None:
        """Log the final line."""
        self._log()

    def _log(self) -> None:
        percent = 100 * self.done_bytes / self.total_bytes if self.total_bytes else 100
        counted = f"{human_bytes(self.done_bytes)} of {human_bytes(self.total_bytes)}"
        line = f"{self.what}: {min(percent, 100):.0f} % ({counted}, {time.monotonic() - self._begun:.1f} s)"
        logger.info("%s", line)
        for listener in _listeners:
            listener(line)


def counting_bar(progress: Progress) -> type[tqdm]:
    """A tqdm class that counts into ``progress`` instead of drawing a bar. Several may count at once."""
    lock = threading.Lock()

    class CountingBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": False, "file": StringIO()})
            self.update(kwargs.get("initial", 0))

        def update(self, n: float | None = 1) -> None:
            with lock:
                progress.advance(int(n or 0))

    return CountingBar


def download_bar(what: str) -> type[tqdm]:
    """A tqdm class that logs the bytes a Hub download has written instead of drawing a bar."""

    class DownloadBar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._progress: Progress | None = None
            super().__init__(*args, **{**kwargs, "disable": False, "file": StringIO()})
            # two bars count bytes, received and written; the number of files has a bar too
            if kwargs.get("unit") == "B" and str(kwargs.get("desc")).startswith("Reconstructing"):
                self._progress = Progress(what, 0)

        def update(self, n: float | None = 1) -> bool | None:
            if self._progress is not None:
                self._progress.total_bytes = int(self.total or 0)
                self._progress.advance(int(n or 0))
            return bool(super().update(n))

        def close(self) -> None:
            if self._progress is not None and self._progress.done_bytes:
                self._progress.finish()
                self._progress = None
            super().close()

    return DownloadBar
