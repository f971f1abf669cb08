"""API keys: which requests need one, and which need a certain scope."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from phi3_serve.api.error_handlers import error_response, local_path
from phi3_serve.api.keys import ApiKeys, set_key
from phi3_serve.config.api_keys import KeyScope
from phi3_serve.errors import PermissionDenied, Phi3ServeError, Unauthorized

# Health checks have no key. The chat page, to which `/` leads, holds nothing secret and asks its user for the key.
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/ui"})
OPEN_FOLDER = "/ui/"


class AuthenticationMiddleware:
    """Answers 401 to a request without a known API key, and 403 if the key lacks the scope. Without keys all pass."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its key, or answer why not."""
        if scope["type"] == "http" and self._keys.are_required and not _is_open(local_path(scope)):
            try:
                self._authenticate(scope)
            except Phi3ServeError as error:
                await error_response(local_path(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> None:
        key = self._keys.of_headers(Headers(scope=scope))
        if key is None:
            raise Unauthorized(
                "This server asks for an API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
            )
        needed = _needed_scope(scope["method"], local_path(scope))
        if needed is not None and not key.allows(needed):
            raise PermissionDenied(f"The API key {key.name} lacks the scope `{needed}`.")
        set_key(scope, key)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _needed_scope(method: str, path: str) -> KeyScope | None:
    """The scope that a request needs; None if every key may send it."""
    if method == "POST":
        return "generate"
    return "metrics" if path == "/metrics" else None
