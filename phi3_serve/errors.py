"""The one tree of errors.

Phi3ServeError                 everything this project raises on purpose
├── InvalidRequest             the request is wrong; sending it again changes nothing
│   ├── UnknownModel           the request names a model that this server does not declare
│   ├── NotFound               the request names a file or a batch that is not there
│   └── PromptTooLong          the prompt leaves no token of the context, or of max_length, to an answer
├── StorageUnavailable         the directory of files and batches cannot be read or written
├── Unauthorized               the request carries no API key that this server knows
├── PermissionDenied           the request's API key lacks the scope that the route needs
├── BodyTooLarge               the body has more bytes than ``limits.max_body_bytes``, or a file has too many
├── UnsupportedBody            the body has a Content-Encoding that the server does not decode
├── ModelUnavailable           the variant cannot answer now: loading, failed, or no node can hold it
│   ├── ModelNotLoaded         the replica runs without its model; another one may have it
│   └── AdapterUnavailable     an adapter that the request names cannot be loaded; the model itself answers
├── Overloaded                 the queue is full; try again later
├── RequestTimeout             the request's own deadline passed
├── EngineFailure              the engine broke while it ran this request
│   └── ReplicaLost            the replica ended while it ran this request, which may be the cause
└── CheckpointError            the weights, tokenizer or config cannot be served as they are
    ├── SourceUnreachable      the Hub does not answer, or answers with a server error
    ├── StorageFull            the disk has no room for what is downloaded
    ├── AlreadyFetching        another process downloads into the same directory
    ├── MemoryFull             the model does not fit into the memory that is free now
    ├── CheckpointIncomplete   a directory, a file or a part of one is missing or cannot be read
    └── AccessDenied           the Hub gives the repository only to other tokens

``api.error_mapping`` maps the tree to HTTP statuses in one table. Errors cross process borders inside
events (``core.Failed``), so each keeps everything in ``args`` and survives a pickle.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Literal


class Phi3ServeError(Exception):
    """An error with a message meant for the person who sent the request or wrote the config."""

    timings: Any = None
    """``core.Timings`` of the request that has failed, if an engine had begun it. They travel in ``core.Failed``."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(Phi3ServeError):
    """The request cannot be honoured as it is; ``param`` names the field at fault, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.args = (message, param)
        self.param = param


class UnknownModel(InvalidRequest):
    """The request names a model that is not declared in the config."""


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for an answer in the model's context, or in the request's own ``max_length``."""


class NotFound(InvalidRequest):
    """The request names a file or a batch that is not there, or that another API key has made."""


class StorageUnavailable(Phi3ServeError):
    """The directory of files and batches cannot be read or written now."""


class Unauthorized(Phi3ServeError):
    """The server asks for an API key, and the request carries none that it knows."""


class PermissionDenied(Phi3ServeError):
    """The request's API key is known, and its scopes do not include the route."""


class BodyTooLarge(Phi3ServeError):
    """The body has more bytes than ``limits.max_body_bytes``, or a file more than ``batches.max_file_bytes``."""


class UnsupportedBody(Phi3ServeError):
    """The request's body has a Content-Encoding that the server does not decode."""


class ModelUnavailable(Phi3ServeError):
    """The variant cannot answer now; ``retry_after_s`` is None where waiting does not help."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.args = (message, retry_after_s)
        self.retry_after_s = retry_after_s


class ModelNotLoaded(ModelUnavailable):
    """The replica that got the request runs without its model."""


class AdapterUnavailable(ModelUnavailable):
    """An adapter that the request names cannot be loaded. Requests without it are answered."""


# Who refuses a request: a limit of its API key, the capacity of the whole server or of one model, the number that may
# wait for a model to start, Ray Serve's router, the queue of a replica, or the time that it may wait there.
RefusedBy = Literal["key", "server", "model", "start", "router", "queue", "queue_timeout"]


class Overloaded(ModelUnavailable):
    """Too many requests are waiting already."""

    def __init__(self, message: str, retry_after_s: float | None = None, refused_by: RefusedBy = "queue") -> None:
        super().__init__(message, retry_after_s)
        self.args = (message, retry_after_s, refused_by)
        self.refused_by: RefusedBy = refused_by


class RequestTimeout(Phi3ServeError):
    """The request did not finish before its deadline."""


class EngineFailure(Phi3ServeError):
    """The engine failed on this request, or its thread is dead."""


class ReplicaLost(EngineFailure):
    """The replica ended while it ran this request. The request may be the cause, so it should not be sent again."""


class CheckpointError(Phi3ServeError):
    """A checkpoint cannot be served; the message is one line that names the file.

    The subclasses are causes that may end without a change of the configuration (``serving.load_policy``).
    """


class SourceUnreachable(CheckpointError):
    """The Hub does not answer, or answers with a server error."""


class StorageFull(CheckpointError):
    """The disk has no room."""


class AlreadyFetching(CheckpointError):
    """Another process downloads into the same directory."""


class MemoryFull(CheckpointError):
    """The model does not fit into the memory that is free now."""


class CheckpointIncomplete(CheckpointError):
    """A directory, a file or a part of one is missing or cannot be read."""


class DeviceMissing(CheckpointError):
    """The model is for a GPU, and torch sees none."""


class AccessDenied(CheckpointError):
    """The repository is gated or private, and the token may not read it."""


MAX_NAME_TO_COMPARE = 96  # characters; comparing a name of a megabyte takes half a second


def did_you_mean(
    name: str, valid: Iterable[str], otherwise: str = ".", *, quote: str = "`", cutoff: float = 0.6
) -> str:
    """The end of a sentence about the unknown ``name``: "; did you mean `NEAREST`?".

    ``otherwise`` ends the sentence if no valid name is close. ``quote`` stands before and after the nearest name.
    ``cutoff`` is how close a name must be, from 0 to 1 (``difflib.SequenceMatcher.ratio``). Capital letters count as
    small ones.
    """
    if len(name) > MAX_NAME_TO_COMPARE:
        return otherwise
    small = name.lower()
    names = {each.lower(): each for each in valid if not _is_opposite(small, each.lower())}
    close = get_close_matches(small, names, n=1, cutoff=cutoff)
    return f"; did you mean {quote}{names[close[0]]}{quote}?" if close else otherwise


def unknown_adapter(name: str, field: str, model: str, offered: Sequence[str]) -> UnknownModel:
    """The error of a request whose ``field`` names an adapter that ``model`` does not offer."""
    all_names = f"; offered are {', '.join(offered)}." if offered else "; it offers none."
    hint = did_you_mean(name, offered, all_names, quote="")
    return UnknownModel(f"`{field}` names the adapter {name[:128]}, which {model} does not offer{hint}", field)


def _is_opposite(one: str, other: str) -> bool:
    """Whether one name is of a minimum and the other of a maximum."""
    return {one[:4], other[:4]} == {"min_", "max_"}
