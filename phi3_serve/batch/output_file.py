"""The output of a batch that may be stopped at any moment and goes on where it was."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from phi3_serve.batch.lines import read_answer
from phi3_serve.errors import InvalidRequest


class OutputFile:
    """Lines of answers; each is in the file once it was written, whatever ends this process."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.answered: set[str] = set()  # the `custom_id` of each answer that is in the file
        self.num_errors = 0  # of the answers that were in the file when it was opened

    @staticmethod
    @contextmanager
    def opened(path: Path, *, is_own: bool = False) -> Iterator["OutputFile"]:
        """The file at ``path``, made if it is missing. What an ended process left of its last line is removed.

        ``is_own``: nobody else has written to it, so a line that is no answer is damaged. It is removed, and all that
        follows it.

        Raises:
            InvalidRequest: another process writes it, it has lines that are not answers, or it cannot be written.
        """
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise InvalidRequest(f"{path} cannot be written: {error.strerror}.") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InvalidRequest(f"{path} is written by another process; wait for its end, or stop it.") from None
            output = OutputFile(file)
            output._read(path, is_own)
            yield output

    def _read(self, path: Path, is_own: bool) -> None:
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            found = read_answer(line.decode(errors="replace"))
            if found is None and is_own:
                break
            if found is None:
                raise InvalidRequest(f"{path}, line {number}, is not an answer of a batch; give another file.")
            custom_id, is_answer = found
            self.answered.add(custom_id)
            self.num_errors += not is_answer
            end += len(line)
        self._file.truncate(end)
        self._file.seek(end)

    def write(self, custom_id: str, text: str) -> None:
        """Append the answer ``text`` to ``custom_id``."""
        # Half of a surrogate pair has no UTF-8; with a backslash it is JSON's spelling of it.
        self._file.write(text.encode(errors="backslashreplace") + b"\n")
        self._file.flush()
        self.answered.add(custom_id)
