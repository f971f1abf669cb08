"""Slashes in paths: `/chat/` and `//chat` are `/chat`, as base URLs that end in a slash make them."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from phi3_serve.api.error_handlers import local_path

# They load files by relative paths, so a browser must see their own address. Starlette redirects it, and files below.
_PAGES = ("/docs", "/ui")


class PathMiddleware:
    """Takes out empty parts of the path. A redirect would lose a POST with many clients, and https behind a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            path = local_path(scope)
            if path != (clean := _without_empty_parts(path)):
                scope = {**scope, "path": scope.get("root_path", "") + clean}
        await self._app(scope, receive, send)


def _without_empty_parts(path: str) -> str:
    clean = re.sub("/+", "/", path).removesuffix("/") or "/"
    return path if f"/{clean.split('/')[1]}" in _PAGES else clean
