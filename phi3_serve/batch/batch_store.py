"""Batches of one owner in a directory. Each has a directory, whose files have one writer each.

- ``request.json``: what the client asked for. It is written once.
- ``cancel.json``: the client's wish to cancel.
- ``progress.json``: how far the batch is. The worker writes it.
- ``output.jsonl`` and ``errors.jsonl``: the answers so far. The worker writes them.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from phi3_serve.batch import json_file
from phi3_serve.batch.object_id import BATCH_ID
from phi3_serve.batch.private_directory import make_private

Ending = Literal["completed", "cancelled", "expired", "failed"]
Status = Literal["validating", "in_progress", "finalizing"] | Ending
ENDINGS: Sequence[Status] = ("completed", "cancelled", "expired", "failed")

_REQUEST, _PROGRESS, _CANCEL = "request.json", "progress.json", "cancel.json"


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What the client asked for. Times are seconds since 1970."""

    id: str
    endpoint: str
    input_file_id: str
    created_at: int
    expires_at: int  # the end of the completion window
    metadata: Mapping[str, str] | None = None
    output_expires_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a batch has failed: one line, or the file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(slots=True)
class Progress:
    """How far a batch is. Times are seconds since 1970."""

    status: Status = "validating"
    ending: Ending | None = None  # while it is finalizing, what it will be
    times: dict[str, int] = field(default_factory=dict)  # when each status began
    num_total: int = 0  # requests
    num_completed: int = 0
    num_failed: int = 0
    problems: list[Problem] = field(default_factory=list)
    output_file_id: str | None = None  # there once the batch has ended
    error_file_id: str | None = None
    usage: dict[str, int] | None = None  # tokens

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.status in ENDINGS


class BatchStore:
    """The batches in ``directory``, which is made when the first batch comes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self, request: BatchRequest) -> None:
        """Remember a new batch.

        Raises:
            OSError: it cannot be written.
        """
        hidden = self._hidden(request.id)
        make_private(hidden)
        json_file.write(hidden / _REQUEST, asdict(request))
        hidden.rename(self._path(request.id))

    def request(self, id: str) -> BatchRequest | None:
        """What the batch ``id`` asks for, if it is there."""
        content = self._read(id, _REQUEST)
        return None if content is None else json_file.as_object(BatchRequest, content)

    def progress(self, id: str) -> Progress:
        """How far the batch ``id`` is."""
        content = self._read(id, _PROGRESS) or {}
        given = [json_file.as_object(Problem, each) for each in content.pop("problems", ())]
        problems = [problem for problem in given if problem is not None]
        return json_file.as_object(Progress, {**content, "problems": problems}) or Progress()

    def save(self, id: str, progress: Progress) -> None:
        """Remember how far the batch ``id`` is."""
        json_file.write(self._path(id) / _PROGRESS, asdict(progress))

    def cancel(self, id: str, at: int) -> None:
        """Wish the end of the batch ``id``. A second wish changes nothing."""
        if self.cancelled_at(id) is None:
            json_file.write(self._path(id) / _CANCEL, {"at": at})

    def cancelled_at(self, id: str) -> int | None:
        """When the client wished the end of the batch ``id``, if ever."""
        content = self._read(id, _CANCEL)
        return None if content is None else int(content["at"])

    def output(self, id: str) -> Path:
        """The answers so far."""
        return self._path(id) / "output.jsonl"

    def errors(self, id: str) -> Path:
        """The errors that requests have as their answers so far."""
        return self._path(id) / "errors.jsonl"

    def ids(self) -> Sequence[str]:
        """The ids of all batches, in any order."""
        return [path.name for path in self._directory.glob("batch_*")]

    def uses(self, file_id: str) -> str | None:
        """The id of a batch that has not ended and reads the file ``file_id``, if there is one."""
        for id in self.ids():
            request = self.request(id)
            if request is not None and request.input_file_id == file_id and not self.progress(id).has_ended:
                return id
        return None

    def delete(self, id: str) -> None:
        """Forget the batch ``id``. The files of its answers stay."""
        self._path(id).rename(self._hidden(id))
        shutil.rmtree(self._hidden(id), ignore_errors=True)

    def _read(self, id: str, name: str) -> dict[str, Any] | None:
        return json_file.read(self._path(id) / name) if BATCH_ID.matches(id) else None

    def _path(self, id: str) -> Path:
        return self._directory / id

    def _hidden(self, id: str) -> Path:
        """A directory that is no batch yet, or no more."""
        return self._directory / f".{id}"
