"""``phi3-serve fetch``: the files of a variant or an adapter in a directory, at one commit, each equal to its hash.

The directory is for ``source`` of a model or of an adapter. The file ``fetched.json`` in it has the sizes and the
hashes. With it, the directory or a copy of it can be compared without the Hub.
"""

from collections.abc import Sequence
from pathlib import Path

from phi3_serve.errors import CheckpointError, CheckpointIncomplete
from phi3_serve.fetch.download import check_room, download_files, remove_other_parts
from phi3_serve.fetch.fetched import Fetched
from phi3_serve.fetch.hub_file import HubFile
from phi3_serve.fetch.lock import locked
from phi3_serve.fetch.manifest import read_manifest, write_manifest
from phi3_serve.fetch.repository import files_on_the_hub
from phi3_serve.fetch.wanted import Wanted
from phi3_serve.observability.progress import Progress


def fetch(wanted: Wanted, to: Path) -> Fetched:
    """Download what the directory of ``wanted`` in ``to`` lacks, and compare every file with its hash.

    Unfinished files are continued. Files that are right are kept. If nothing lacks, the Hub is not asked.

    Raises:
        AlreadyFetching: another process downloads into the directory.
        CheckpointError: the Hub does not give the files, the disk is full, or a file is not right after the download.
    """
    directory = to.expanduser().absolute() / wanted.name
    with locked(directory):
        files = _files_of(wanted, directory)
        lacking = [file for file, _ in _problems(wanted, files, directory)]
        if lacking:
            remove_other_parts(directory, lacking)
            check_room(directory, lacking)
            download_files(wanted, directory, lacking)
            if problems := [problem for _, problem in _problems(wanted, lacking, directory)]:
                text = "; ".join(problems)
                raise CheckpointIncomplete(f"{wanted.name}: {text}. The same command downloads it again.")
        fetched = Fetched(wanted, directory, files, [file.path for file in lacking])
        write_manifest(fetched)
    return fetched


def verify(wanted: Wanted, to: Path) -> Fetched:
    """Compare the files of ``wanted`` in ``to`` with the hashes in its ``fetched.json``, without the Hub.

    Raises:
        CheckpointError: a file is missing or not right, or the directory has another revision.
    """
    directory = to.expanduser().absolute() / wanted.name
    manifest = read_manifest(directory)
    if manifest.revision != wanted.revision:
        raise CheckpointError(f"{directory}: holds revision {manifest.revision}, and {wanted.revision} is wanted")
    if problems := [problem for _, problem in _problems(wanted, manifest.files, directory)]:
        raise CheckpointIncomplete(f"{wanted.name}: {'; '.join(problems)}")
    return Fetched(wanted, directory, manifest.files, [])


def _files_of(wanted: Wanted, directory: Path) -> list[HubFile]:
    """The list in ``fetched.json`` if it is of this revision; then a complete directory needs no Hub."""
    try:
        manifest = read_manifest(directory)
    except CheckpointIncomplete:
        return files_on_the_hub(wanted)
    return manifest.files if manifest.revision == wanted.revision else files_on_the_hub(wanted)


def _problems(wanted: Wanted, files: Sequence[HubFile], directory: Path) -> list[tuple[HubFile, str]]:
    """The files that are not right in ``directory``, each with the reason."""
    present = sum(file.size for file in files if (directory / file.path).is_file())
    progress = Progress(f"{wanted.name}: comparing with the hashes", present)
    found = [(file, problem) for file in files if (problem := file.problem_in(directory, progress)) is not None]
    if present:
        progress.finish()
    return found
