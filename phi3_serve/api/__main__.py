"""``python -m phi3_serve.api`` prints the API reference, which ``docs/api.md`` holds."""

from typing import Any, cast

from phi3_serve.api.app import create_app
from phi3_serve.api.reference import as_markdown, reference
from phi3_serve.config.app import AppConfig

no_backend: Any = cast(Any, None)  # only requests use the backend
print(as_markdown(reference(create_app(no_backend, AppConfig()).openapi())), end="")
