"""Files and batches of the directory as OpenAI's API writes them."""

from dataclasses import asdict
from typing import Any

from phi3_serve.api.batches.schema import (
    Batch,
    BatchError,
    BatchErrors,
    BatchRequestCounts,
    BatchStatus,
    BatchUsage,
    FileObject,
    InputTokensDetails,
)
from phi3_serve.batch.batch_store import BatchRequest, Progress
from phi3_serve.batch.file_store import StoredFile


def file_object(file: StoredFile) -> FileObject:
    """What a file is."""
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def batch_object(request: BatchRequest, progress: Progress, cancelled_at: int | None) -> Batch:
    """How far a batch is. ``cancelled_at``: when the client wished its end, if it did."""
    is_cancelled = progress.status == "cancelled" or (cancelled_at is not None and _can_be_cancelled(progress))
    files = (progress.output_file_id, progress.error_file_id) if progress.has_ended else (None, None)
    errors = [BatchError(**asdict(problem)) for problem in progress.problems]
    times: dict[str, Any] = {f"{status}_at": at for status, at in progress.times.items()}
    return Batch(
        id=request.id,
        endpoint=request.endpoint,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=request.input_file_id,
        status=status_of(progress, cancelled_at),
        output_file_id=files[0],
        error_file_id=files[1],
        created_at=request.created_at,
        expires_at=request.expires_at,
        cancelling_at=cancelled_at if is_cancelled else None,
        **times,
        request_counts=BatchRequestCounts(
            total=progress.num_total, completed=progress.num_completed, failed=progress.num_failed
        ),
        usage=_usage(progress),
        metadata=None if request.metadata is None else dict(request.metadata),
    )


def status_of(progress: Progress, cancelled_at: int | None) -> BatchStatus:
    """The status as clients see it. Between the wish to cancel and the end a batch is `cancelling`."""
    if cancelled_at is not None and _can_be_cancelled(progress):
        return "cancelling"
    return progress.status


def _can_be_cancelled(progress: Progress) -> bool:
    """Whether a wish to cancel still ends the batch."""
    return not progress.has_ended and progress.ending in (None, "cancelled")


def _usage(progress: Progress) -> BatchUsage | None:
    tokens = progress.usage
    if tokens is None:
        return None
    return BatchUsage(
        input_tokens=tokens["input_tokens"],
        input_tokens_details=InputTokensDetails(cached_tokens=tokens["cached_tokens"]),
        output_tokens=tokens["output_tokens"],
        total_tokens=tokens["input_tokens"] + tokens["output_tokens"],
    )
