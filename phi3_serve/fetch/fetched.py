"""The files of a directory, complete and right."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phi3_serve.fetch.hub_file import HubFile
from phi3_serve.fetch.wanted import Wanted


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was wanted, with all files complete and right."""

    wanted: Wanted
    directory: Path
    files: Sequence[HubFile]
    downloaded: Sequence[str]  # paths of the files that were not there, or not right

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """The result for scripts."""
        return {
            "name": self.wanted.name,
            "source": self.wanted.source,
            "revision": self.wanted.revision,
            "directory": str(self.directory),
            "bytes": self.total_bytes,
            "downloaded": list(self.downloaded),
            "files": [asdict(file) for file in self.files],
        }
