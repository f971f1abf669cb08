"""What the OpenAPI document says of the statuses of these routes."""

from typing import Any

from phi3_serve.api.error_mapping import documented
from phi3_serve.api.openai_errors import OPENAI
from phi3_serve.errors import (
    BodyTooLarge,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    RequestTimeout,
    StorageUnavailable,
    Unauthorized,
    UnsupportedBody,
)

Responses = dict[int | str, dict[str, Any]]  # as FastAPI documents them

READ: Responses = {
    **documented([InvalidRequest, Unauthorized, NotFound, StorageUnavailable], OPENAI.validation_status),
    404: {"description": "The file or batch is not there, or `batches.directory` is not set"},
    503: {"description": "The directory of files and batches cannot be used"},
}
_OF_A_BODY = [PermissionDenied, RequestTimeout, BodyTooLarge, UnsupportedBody, Overloaded]
WRITE: Responses = dict(sorted({**READ, **documented(_OF_A_BODY)}.items(), key=lambda each: int(each[0])))
