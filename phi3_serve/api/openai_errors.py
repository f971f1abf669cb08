"""OpenAI's errors: ``{"error": {"message", "type", "param", "code"}}``.

Source: the error classes of the ``openai`` SDK 3.57, and https://platform.openai.com/docs/guides/error-codes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from phi3_serve.api.error_mapping import FieldError, status_of
from phi3_serve.errors import (
    AdapterUnavailable,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    PermissionDenied,
    Phi3ServeError,
    PromptTooLong,
    RequestTimeout,
    Unauthorized,
    UnknownModel,
)

# OpenAI has no code for most errors. An error without a row has the code of its nearest base class, or null.
CODE: Mapping[type[Phi3ServeError], str] = {
    UnknownModel: "model_not_found",
    PromptTooLong: "context_length_exceeded",
    Unauthorized: "invalid_api_key",
    PermissionDenied: "missing_scope",
    Overloaded: "rate_limit_exceeded",
    ModelUnavailable: "model_unavailable",
    AdapterUnavailable: "adapter_unavailable",
    RequestTimeout: "timeout",
}


class OpenAIErrorFormat:
    """See ``error_mapping.ErrorFormat``."""

    validation_status = 400

    def body(self, error: Phi3ServeError) -> dict[str, Any]:
        """Message, code, and the field at fault if there is one."""
        code = next((CODE[cls] for cls in type(error).__mro__ if cls in CODE), None)
        param = error.param if isinstance(error, InvalidRequest) else None
        return _body(status_of(error), error.message, param, code)

    def http_body(self, status: int, message: str) -> dict[str, Any]:
        """The message, without code and field."""
        return _body(status, message)

    def validation_body(self, errors: Sequence[FieldError]) -> dict[str, Any]:
        """The first wrong field: OpenAI's format has a place for one."""
        return _body(self.validation_status, errors[0].named_message, errors[0].field or None)


def _body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": _type_of(status), "param": param, "code": code}}


def _type_of(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


OPENAI = OpenAIErrorFormat()
