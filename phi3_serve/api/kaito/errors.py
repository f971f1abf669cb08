"""KAITO's errors: ``{"detail": ...}``, the format of FastAPI, with which KAITO's server was made."""

from collections.abc import Sequence
from typing import Any

from phi3_serve.api.error_mapping import FieldError
from phi3_serve.errors import Phi3ServeError


class KaitoErrorFormat:
    """See ``error_mapping.ErrorFormat``."""

    validation_status = 422

    def body(self, error: Phi3ServeError) -> dict[str, Any]:
        """The message alone."""
        return {"detail": error.message}

    def http_body(self, status: int, message: str) -> dict[str, Any]:
        """The message alone."""
        return {"detail": message}

    def validation_body(self, errors: Sequence[FieldError]) -> dict[str, Any]:
        """Every wrong field, in the shape of FastAPI."""
        return {"detail": [{"loc": list(e.location), "msg": e.message, "type": e.type} for e in errors]}


KAITO = KaitoErrorFormat()
