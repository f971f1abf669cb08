"""A process on a terminal of its own."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\b]")
PROMPT = "\n>"
PASTE = "\x1b[200~{}\x1b[201~"
ROWS = 24


class Screen:
    """``command`` on a terminal. ``text`` is what it has shown, without escape sequences; ``raw`` is all of it."""

    def __init__(
        self, command: list[str], home: Path, *, columns: int = 100, env: Mapping[str, str] | None = None
    ) -> None:
        self._fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        environment = {
            **inherited,
            "XDG_STATE_HOME": str(home),
            "XDG_DATA_HOME": str(home),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            **(env or {}),
        }
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True, env=environment, preexec_fn=_own
        )
        os.close(other)
        self.raw = b""

    @property
    def text(self) -> str:
        return ESCAPES.sub("", self.raw.decode(errors="replace"))

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, found: str, after: int = 0) -> int:
        """Read until ``found`` is on the screen; where it ends."""
        self.wait_until(lambda: found in self.text[after:])
        return self.text.index(found, after) + len(found)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 25
        while not holds():
            assert time.monotonic() < deadline, self.text[-2000:]
            self._read()

    def wait_for_end(self) -> int:
        """Read until the process has ended; its exit code."""
        self.wait_until(lambda: self.process.poll() is not None)
        self._read()
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)

    def _read(self) -> None:
        if not select.select([self._fd], [], [], 0.1)[0]:
            return
        try:
            read = os.read(self._fd, 65536)
        except OSError:  # the process has closed it
            return
        self.raw += read


def _own() -> None:
    """Make the terminal the process's own, so that Ctrl-C typed there reaches it, and heard, as a shell does.

    Tests that run in the background of a script have inherited that it is ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
