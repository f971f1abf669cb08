"""The files of a checkpoint or an adapter on this machine: a directory, or a snapshot of a Hub repository."""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from phi3_serve.catalogue import DOWNLOADED, is_local
from phi3_serve.engine.adapters import reader
from phi3_serve.engine.load_errors import fetch_error
from phi3_serve.errors import CheckpointIncomplete
from phi3_serve.observability.progress import download_bar

logger = logging.getLogger("phi3_serve")


def fetch(
    name: str,
    source: str,
    revision: str | None,
    file: str | None = None,
    *,
    of_gguf: str = "of a repository with GGUF files, `file` must name one",
) -> Path:
    """The directory or file ``source``, or the Hub snapshot of ``revision``, which is downloaded if necessary.

    With ``file``, nothing else of the snapshot is downloaded. ``of_gguf`` is what the error for a repository without
    safetensors files says about GGUF files.

    Raises:
        CheckpointError: the snapshot cannot be downloaded; the subclass is the cause.
    """
    if is_local(source):
        return Path(source).expanduser().resolve()
    snapshot = _snapshot(name, source, revision, DOWNLOADED if file is None else [file])
    if file is not None and not (snapshot / file).exists():
        raise CheckpointIncomplete(f"{source}: there is no file {file} at {revision or 'its newest revision'}")
    if file is None and not any(snapshot.glob("*.safetensors")):
        raise CheckpointIncomplete(f"{source}: there are no safetensors files; {of_gguf}")
    return snapshot


def fetch_adapter(name: str, source: str, revision: str | None) -> Path:
    """The directory ``source``, or the Hub snapshot of ``revision``, of which only an adapter's files are downloaded.

    Raises:
        CheckpointError: the snapshot cannot be downloaded; the subclass is the cause.
    """
    if is_local(source):
        return Path(source).expanduser().resolve()
    # Patterns like *.json would also take the checkpoints of the training, which are in directories below.
    snapshot = _snapshot(name, source, revision, reader.FILES)
    for file in reader.FILES:
        if not (snapshot / file).exists():
            raise CheckpointIncomplete(
                f"{source}: there is no file {file} at {revision or 'its newest revision'}; an adapter is "
                f"{' and '.join(reader.FILES)}. A pickle such as {reader.PICKLED} may run any code and is not read"
            )
    return snapshot


def _snapshot(name: str, source: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The Hub snapshot of ``revision``, of which the files that ``patterns`` match are downloaded."""
    logger.info("%s: fetching %s at %s", name, source, revision or "its newest revision")
    bar = download_bar(f"{name}: downloading {source}")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns), tqdm_class=bar))
    except Exception as error:  # of the Hub, of the network or of the disk
        raise fetch_error(source, revision, error) from error
