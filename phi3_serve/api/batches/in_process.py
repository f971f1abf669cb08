"""A request of a batch, sent to an ASGI application in this process as a client would send it over HTTP."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

from phi3_serve.api.headers import REQUEST_ID
from phi3_serve.api.keys import ApiKey, set_key
from phi3_serve.batch.lines import Reply


class InProcessClient:
    """Posts JSON to ``app``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def post(self, path: str, body: Mapping[str, Any], key: ApiKey | None) -> Reply:
        """The reply to ``body``, sent by the owner of ``key``. If this call is cancelled, the request ends."""
        content = json.dumps(body).encode()
        exchange = _Exchange(content)
        scope = _scope(path, len(content))
        if key is not None:
            set_key(scope, key)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:  # the application has sent 500 and logged it, and raises it again for the server
            if exchange.status is None:
                raise
        return exchange.reply()


class _Exchange:
    """Both directions of one request."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content
        self.status: int | None = None
        self._headers = Headers()
        self._body = bytearray()

    async def receive(self) -> Message:
        if self._content is None:
            await asyncio.Event().wait()  # a client that does not disconnect
        message = {"type": "http.request", "body": self._content, "more_body": False}
        self._content = None
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._headers = Headers(raw=message["headers"])
        elif message["type"] == "http.response.body":
            self._body += message.get("body", b"")

    def reply(self) -> Reply:
        retry_after = self._headers.get("retry-after", "")
        return Reply(
            status=self.status or 500,
            body=json.loads(self._body),  # every route answers with JSON
            request_id=self._headers.get(REQUEST_ID),
            retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
        )


def _scope(path: str, content_length: int) -> Scope:
    headers = {"content-type": "application/json", "content-length": str(content_length)}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": {},
    }
