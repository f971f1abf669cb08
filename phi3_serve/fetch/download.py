"""Download files, and go on with those that are unfinished."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers

from phi3_serve.engine.load_errors import fetch_error
from phi3_serve.errors import StorageFull
from phi3_serve.fetch.hub_file import HubFile
from phi3_serve.fetch.lock import cannot_write
from phi3_serve.fetch.wanted import Wanted
from phi3_serve.observability.progress import Progress, counting_bar, human_bytes

PARTS = ".unfinished"  # a directory; each file in it is named after the hash of the whole
DOWNLOADS_AT_ONCE = 4


def check_room(directory: Path, lacking: Sequence[HubFile]) -> None:
    """StorageFull before the download, not hours later."""
    parts = [part for file in lacking if (part := _part(directory, file)).is_file()]
    needed = sum(file.size for file in lacking) - sum(part.stat().st_size for part in parts)
    if (free := shutil.disk_usage(directory).free) < needed:
        raise StorageFull(f"{directory}: {human_bytes(needed)} are needed, and {human_bytes(free)} are free")


def remove_other_parts(directory: Path, lacking: Sequence[HubFile]) -> None:
    """Remove unfinished files that nothing continues, such as those of another revision."""
    continued = {file.hash for file in lacking}
    try:
        for part in (directory / PARTS).glob("*"):
            if part.name not in continued:
                part.unlink()
    except OSError as error:
        raise cannot_write(directory / PARTS, error) from None


def download_files(wanted: Wanted, directory: Path, files: Sequence[HubFile]) -> None:
    """Download ``files``. ``snapshot_download`` of the library begins each unfinished file anew, so it is not used."""
    progress = Progress(f"{wanted.name}: downloading {wanted.source}", sum(file.size for file in files))
    bar = counting_bar(progress)
    try:
        (directory / PARTS).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            downloads = [pool.submit(_download_file, wanted, directory, file, bar) for file in files]
        for download in downloads:
            download.result()
        (directory / PARTS).rmdir()
    except Exception as error:  # of the Hub, of the network or of the disk
        raise fetch_error(wanted.source, wanted.revision, error, into=str(directory)) from error
    progress.finish()


def _download_file(wanted: Wanted, directory: Path, file: HubFile, bar: type[Any]) -> None:
    part, path = _part(directory, file), directory / file.path
    with part.open("ab") as opened:
        if opened.tell() > file.size:
            opened.seek(0)
            opened.truncate()
        http_get(
            hf_hub_url(wanted.source, file.path, revision=wanted.revision),
            opened,
            resume_size=opened.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
            tqdm_class=bar,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part.replace(path)


def _part(directory: Path, file: HubFile) -> Path:
    return directory / PARTS / file.hash
