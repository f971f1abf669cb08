"""Anthropic's errors: ``{"type": "error", "error": {"type", "message"}}``.

Source: the error types of the ``anthropic`` SDK 2.14, and https://platform.claude.com/docs/en/api/errors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from phi3_serve.api.error_mapping import FieldError, status_of
from phi3_serve.errors import InvalidRequest, Phi3ServeError

_TYPE: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnthropicErrorFormat:
    """See ``error_mapping.ErrorFormat``."""

    validation_status = 400

    def body(self, error: Phi3ServeError) -> dict[str, Any]:
        """Type and message, and for a thread the details by which the SDK's tool runner goes on without one."""
        body = _body(status_of(error), error.message)
        if isinstance(error, InvalidRequest) and error.param == "thread":
            body["error"]["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
        return body

    def http_body(self, status: int, message: str) -> dict[str, Any]:
        """Type and message."""
        return _body(status, message)

    def validation_body(self, errors: Sequence[FieldError]) -> dict[str, Any]:
        """The first wrong field, which the message begins with."""
        return _body(self.validation_status, errors[0].named_message)


def _body(status: int, message: str) -> dict[str, Any]:
    default = "api_error" if status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": _TYPE.get(status, default), "message": message}}


ANTHROPIC = AnthropicErrorFormat()
