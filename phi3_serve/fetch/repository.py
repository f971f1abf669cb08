"""The files of a Hub repository."""

from fnmatch import fnmatch

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile

from phi3_serve.engine.load_errors import fetch_error
from phi3_serve.errors import CheckpointError
from phi3_serve.fetch.hub_file import HubFile, hub_file
from phi3_serve.fetch.wanted import Wanted


def files_on_the_hub(wanted: Wanted) -> list[HubFile]:
    """The files of ``wanted``.

    Raises:
        CheckpointError: the Hub does not answer, or lacks a file.
    """
    try:
        entries = list(HfApi().list_repo_tree(wanted.source, revision=wanted.revision, recursive=True))
    except Exception as error:  # of the Hub or of the network
        raise fetch_error(wanted.source, wanted.revision, error) from error
    files = [hub_file(entry) for entry in entries if isinstance(entry, RepoFile)]
    chosen = [file for file in files if any(fnmatch(file.path, pattern) for pattern in wanted.patterns)]
    if lacking := [path for path in wanted.required if path not in {file.path for file in chosen}]:
        raise CheckpointError(f"{wanted.source}: there is no file {lacking[0]} at revision {wanted.revision}")
    if not any(file.path.endswith(".safetensors") for file in chosen):
        raise CheckpointError(f"{wanted.source}: there are no safetensors files at revision {wanted.revision}")
    return chosen
