"""Exceptions of a loading as errors of this package: libraries raise many types for one cause."""

import errno
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from phi3_serve.engine.error_kind import kind_of
from phi3_serve.errors import (
    AccessDenied,
    CheckpointError,
    CheckpointIncomplete,
    MemoryFull,
    SourceUnreachable,
    StorageFull,
)

_TOO_MANY_REQUESTS = 429
_FIRST_SERVER_ERROR = 500
_DENIED = (401, 403)
# What libraries in Rust and C++ say, whose exceptions carry no number of the system.
_DISK_WORDS = ("No space left on device", "Disk quota exceeded")


def in_one_line(error: BaseException) -> str:
    """The message of ``error``, or its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def resource_error(where: str, error: BaseException) -> CheckpointError | None:
    """The error for a full disk or a full memory behind ``error``; None for any other cause."""
    for one in _chain(error):
        number = one.errno if isinstance(one, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(one) for words in _DISK_WORDS):
            return StorageFull(f"{where}: the disk is full: {_first_line(one)}")
        if number == errno.ENOMEM or kind_of(one) == "memory":
            return MemoryFull(f"{where}: does not fit into the memory that is free now: {_first_line(one)}")
    return None


def fetch_error(source: str, revision: str | None, error: BaseException, *, into: str | None = None) -> CheckpointError:
    """The error for an exception of ``huggingface_hub`` while it fetches the repository ``source``.

    ``into`` is the directory of the files, by default the cache of the library.
    """
    kind, reason = _fetch_cause(source, error, into or constants.HF_HUB_CACHE)
    return kind(f"{source}: cannot be fetched at revision {revision or 'main'}: {reason}")


def _fetch_cause(source: str, error: BaseException, into: str) -> tuple[type[CheckpointError], str]:
    if full := resource_error(into, error):
        return type(full), full.message
    for one in _chain(error):
        match one:
            case GatedRepoError():
                page = f"{constants.ENDPOINT}/{source}"
                return AccessDenied, (
                    f"the repository is gated; accept its terms at {page} and set HF_TOKEN to a token of that account"
                )
            case RepositoryNotFoundError():
                return AccessDenied, "there is no such repository, or it is private and HF_TOKEN may not read it"
            case RevisionNotFoundError():
                return CheckpointError, "the repository has no such revision"
            case HfHubHTTPError():
                return _of_status(one.response.status_code)
            case OfflineModeIsEnabled():
                return CheckpointIncomplete, "HF_HUB_OFFLINE is set, and the cache does not have it"
            case ConnectionError() | TimeoutError():
                return _unreachable(one)
            case _ if type(one).__module__.startswith("httpx"):  # 1.0 of huggingface_hub uses httpx, others use httpx2
                return _unreachable(one)
    reason = f"{type(error).__name__}: {_first_line(error)}"
    if isinstance(error, ValueError):  # the name of the repository
        return CheckpointError, reason
    if isinstance(error, OSError):  # the cache
        return CheckpointIncomplete, reason
    return _unreachable(error)


def _unreachable(error: BaseException) -> tuple[type[CheckpointError], str]:
    return SourceUnreachable, f"the Hub does not answer: {type(error).__name__}: {_first_line(error)}"


def _of_status(status: int) -> tuple[type[CheckpointError], str]:
    if status in _DENIED:
        return AccessDenied, f"the Hub refuses the token in HF_TOKEN (status {status})"
    if status == _TOO_MANY_REQUESTS or status >= _FIRST_SERVER_ERROR:
        return SourceUnreachable, f"the Hub answers with status {status}"
    return CheckpointError, f"the Hub answers with status {status}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, and what it was raised from, to the first one."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
