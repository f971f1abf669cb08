"""The OpenAPI document: FastAPI's, without the statuses that no route sends."""

from typing import Any

from fastapi import FastAPI

from phi3_serve.api.error_formats import error_format_of


def install_openapi_document(app: FastAPI) -> None:
    """Remove what FastAPI adds for itself: a 422 for every route that has fields, and the schemas of its body."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for path, operations in document["paths"].items():
            if error_format_of(path).validation_status != 422:
                for operation in operations.values():
                    operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # documented by FastAPI under "Extending OpenAPI"
