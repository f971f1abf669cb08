"""What every request passes before a route sees it: its id, its key, and the headers that are not for us."""

import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phi3_serve.api.error_handlers import answer_to, local_path
from phi3_serve.api.headers import REQUEST_ID, SAFE
from phi3_serve.errors import Phi3ServeError, Unauthorized, UnsupportedBody

# Whoever watches over the server has no key; the page is the same for everybody and asks for one.
OPEN_PATHS = frozenset({"/health", "/ready", "/ui"})
# Ray Serve reads these in its proxy, where they can lift its own limits. Ours do not depend on them, and nothing behind
# this gate is to see them.
RAYS_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"serve_multiplexed_model_id",
        b"serve-multiplexed-model-id",
    }
)
_LONGEST_ID = 128
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9._:/+=@-]+")


class AuthenticationMiddleware:
    """Names each request, drops Ray's headers, asks for an API key where there are any, and refuses packed bodies."""

    def __init__(self, app: ASGIApp, *, key_hashes: Sequence[str], names_answers: bool) -> None:
        """``names_answers``: send the request's id back; Ray Serve's proxy does so itself."""
        self._app = app
        self._digests = [bytes.fromhex(key_hash) for key_hash in key_hashes]
        self._names_answers = names_answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = cleaned_id(headers.get(REQUEST_ID, ""))
        scope.setdefault("state", {})["request_id"] = request_id
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in RAYS_HEADERS]

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    answered.setdefault(name, value)
                if self._names_answers:
                    answered[REQUEST_ID] = request_id
            await send(message)

        path = local_path(scope)
        if error := self._objection(path, headers):
            await answer_to(path, error)(scope, receive, named)
        else:
            await self._app(scope, receive, named)

    def _objection(self, path: str, headers: Headers) -> Phi3ServeError | None:
        if path not in OPEN_PATHS and self._digests and not self._has_key(headers.get("authorization", "")):
            return Unauthorized("This server asks for an API key: send it as `Authorization: Bearer KEY`.")
        packing = headers.get("content-encoding", "identity")
        if packing.strip().lower() != "identity":
            return UnsupportedBody(f"The Content-Encoding {packing[:40]!r} is not taken; send the body as it is.")
        return None

    def _has_key(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1")).digest()  # as the header's bytes came
        # Every digest is compared, each in constant time, so the time tells nothing of the keys.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def cleaned_id(given: str) -> str:
    """``given`` as an id that can be logged and sent back, or a new one."""
    return _NOT_IN_AN_ID.sub("", given)[:_LONGEST_ID] or uuid.uuid4().hex


def hash_of(key: str) -> str:
    """What the config says of ``key``: its SHA-256 in hex. Keys are random, so a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()
