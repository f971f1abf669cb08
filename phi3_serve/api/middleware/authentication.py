"""API keys."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from phi3_serve.api.error_handlers import error_response, local_path
from phi3_serve.errors import Unauthorized

# Health checks have no key. The chat page holds nothing secret and asks its user for the key.
OPEN_PATHS = frozenset({"/health", "/ready", "/ui"})


class AuthenticationMiddleware:
    """Answers 401 to a request without a known API key, if the config names any keys."""

    def __init__(self, app: ASGIApp, *, key_hashes: Sequence[str]) -> None:
        """``key_hashes``: the SHA-256 of each key in hex, as ``hash_of`` makes it."""
        self._app = app
        self._digests = [bytes.fromhex(key_hash) for key_hash in key_hashes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401."""
        if scope["type"] != "http" or self._may_pass(scope):
            await self._app(scope, receive, send)
            return
        error = Unauthorized("This server asks for an API key: send it as `Authorization: Bearer KEY`.")
        await error_response(local_path(scope), error)(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if not self._digests or local_path(scope) in OPEN_PATHS:
            return True
        return self._has_key(Headers(scope=scope).get("authorization", ""))

    def _has_key(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()  # latin-1 restores the bytes of the header
        # The time must not depend on which digest matches, so all are compared, each in constant time.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def hash_of(key: str) -> str:
    """The SHA-256 of ``key`` in hex, for the config. Keys are random, so a slow hash would not be safer."""
    return hashlib.sha256(key.encode()).hexdigest()
