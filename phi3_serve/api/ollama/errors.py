"""ollama's errors: ``{"error": ...}``, also as the last line of a stream."""

from collections.abc import Sequence
from typing import Any

from phi3_serve.api.error_mapping import FieldError
from phi3_serve.errors import Phi3ServeError


class OllamaErrorFormat:
    """See ``error_mapping.ErrorFormat``."""

    validation_status = 400

    def body(self, error: Phi3ServeError) -> dict[str, Any]:
        """The message alone."""
        return {"error": error.message}

    def http_body(self, status: int, message: str) -> dict[str, Any]:
        """The message alone."""
        return {"error": message}

    def validation_body(self, errors: Sequence[FieldError]) -> dict[str, Any]:
        """The first wrong field."""
        return {"error": errors[0].named_message}


OLLAMA = OllamaErrorFormat()
