"""Files and batches as OpenAI's API writes them.

Sources: the types of the ``openai`` SDK 3.57 (openai/types/batch.py, openai/types/file_object.py), and
https://platform.openai.com/docs/api-reference/batch.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict

from phi3_serve.api.body_without_parameters import BodyWithoutParameters
from phi3_serve.api.fields import number
from phi3_serve.parameters import Characters

MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 30 * 86_400
COMPLETION_WINDOW_S = 86_400
PURPOSE = "batch"

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
Order = Literal["asc", "desc"]
MetadataKey = Annotated[Characters, Len(1, 64)]
MetadataValue = Annotated[Characters, Len(0, 512)]

# FastAPI would read the whole form before the route runs. The route writes the file while it comes.
FILE_FORM: dict[str, Any] = {
    "title": "FileForm",
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "The requests, one a line"},
        "purpose": {"type": "string", "const": PURPOSE, "description": "What the file is for"},
        "expires_after[anchor]": {
            "type": "string",
            "const": "created_at",
            "description": "From when the seconds are counted; together with expires_after[seconds]",
        },
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_EXPIRY_S,
            "maximum": MAX_EXPIRY_S,
            "description": "Seconds until the file is deleted; by default batches.keep_days of the config",
        },
    },
}


class _Answer(BaseModel):
    """What a route answers."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class FileObject(_Answer):
    """A file. Times are seconds since 1970."""

    id: str
    """Its id."""
    object: Literal["file"] = "file"
    """What this is."""
    bytes: int
    """Its size."""
    created_at: int
    """When it was made."""
    expires_at: int | None = None
    """When it is deleted."""
    filename: str
    """As the client has called it."""
    purpose: str
    """`batch` for requests, `batch_output` for answers."""
    status: Literal["processed"] = "processed"
    """Always the same; older clients want it."""


class FileList(_Answer):
    """A part of the list of files."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[FileObject]
    """The files."""
    first_id: str | None = None
    """The first of them."""
    last_id: str | None = None
    """The last of them."""
    has_more: bool
    """Whether the list goes on behind it."""


class FileDeleted(_Answer):
    """The end of a file."""

    id: str
    """Its id."""
    object: Literal["file"] = "file"
    """What it was."""
    deleted: Literal[True] = True
    """That it is gone."""


class ExpiresAfter(BaseModel):
    """When the files of a batch's answers are deleted."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")

    anchor: Literal["created_at"]
    """From when the seconds are counted: when the file was made."""
    seconds: Annotated[int, Ge(MIN_EXPIRY_S), Le(MAX_EXPIRY_S), number("seconds")]
    """After how many of them."""


class CreateBatchRequest(BodyWithoutParameters):
    """A batch."""

    input_file_id: Characters
    """A file of requests, one a line; its purpose is `batch`."""
    endpoint: Endpoint
    """The path of every request in the file."""
    completion_window: Literal["24h"]
    """How long the batch may take. After this time it ends as `expired`, with the answers that it has."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Len(0, 16)] | None = None
    """Notes of the client; keys of at most 64 and values of at most 512 characters."""
    output_expires_after: ExpiresAfter | None = None
    """When the files of the answers are deleted; by default after batches.keep_days of the config."""


class BatchError(_Answer):
    """A reason why a batch has failed."""

    code: str
    """A word for it."""
    message: str
    """A sentence for it."""
    param: str | None = None
    """The field at fault."""
    line: int | None = None
    """The line of the input file, from 1."""


class BatchErrors(_Answer):
    """Why a batch has failed."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[BatchError]
    """The first hundred reasons."""


class BatchRequestCounts(_Answer):
    """The requests of a batch."""

    total: int
    """All of them; 0 until the file is checked."""
    completed: int
    """Those with an answer."""
    failed: int
    """Those with an error as their answer."""


class InputTokensDetails(_Answer):
    """A part of the tokens of the prompts."""

    cached_tokens: int
    """Those that were in the key-value cache."""


class OutputTokensDetails(_Answer):
    """A part of the tokens of the answers."""

    reasoning_tokens: int = 0
    """Those that are not shown: none."""


class BatchUsage(_Answer):
    """The tokens of all answers."""

    input_tokens: int
    """Of the prompts."""
    input_tokens_details: InputTokensDetails
    """A part of them."""
    output_tokens: int
    """Of the answers."""
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    """A part of them."""
    total_tokens: int
    """Of both."""


BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


class Batch(_Answer):
    """A batch. Times are seconds since 1970."""

    id: str
    """Its id."""
    object: Literal["batch"] = "batch"
    """What this is."""
    endpoint: str
    """The path of its requests."""
    errors: BatchErrors | None = None
    """Why it has failed."""
    input_file_id: str
    """The file of its requests."""
    completion_window: Literal["24h"] = "24h"
    """How long it may take."""
    status: BatchStatus
    """How far it is. `failed`: its file was refused, and nothing was sent."""
    output_file_id: str | None = None
    """The file of its answers, if it has ended and has any."""
    error_file_id: str | None = None
    """The file of the errors, if it has ended and has any."""
    created_at: int
    """When it was made."""
    in_progress_at: int | None = None
    """When its first request could be sent."""
    expires_at: int
    """When its completion window ends."""
    finalizing_at: int | None = None
    """When no more requests were sent."""
    completed_at: int | None = None
    """When it has ended with all answers."""
    failed_at: int | None = None
    """When its file was refused."""
    expired_at: int | None = None
    """When it has ended because its completion window was over."""
    cancelling_at: int | None = None
    """When the client has cancelled it."""
    cancelled_at: int | None = None
    """When it has ended because the client has cancelled it."""
    request_counts: BatchRequestCounts
    """How many of its requests have answers."""
    usage: BatchUsage | None = None
    """The tokens of its answers, if it has ended and has any."""
    metadata: dict[str, str] | None = None
    """The notes of the client."""


class BatchList(_Answer):
    """A part of the list of batches, the newest first."""

    object: Literal["list"] = "list"
    """What this is."""
    data: list[Batch]
    """The batches."""
    first_id: str | None = None
    """The first of them."""
    last_id: str | None = None
    """The last of them."""
    has_more: bool
    """Whether the list goes on behind it."""
