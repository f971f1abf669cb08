"""A client of a running server: JSON and server-sent events over the standard library."""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import quote, urlsplit

from phi3_serve.errors import Phi3ServeError

_TIMEOUT_S = 600
_END = b"data: [DONE]"
_DATA = b"data: "


class Refused(Phi3ServeError):
    """The server answered with an error; ``retry_after_s`` is its Retry-After, if any."""

    def __init__(self, message: str, status: int, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.args = (message, status, retry_after_s)
        self.status = status
        self.retry_after_s = retry_after_s


class Unreachable(Phi3ServeError):
    """The server cannot be reached, or the connection broke."""


class Client:
    """One server. Every call has its own connection, so closing an answer ends it on the server at once."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Connect later.

        Raises:
            Phi3ServeError: ``url`` is not one of http or https.
        """
        self.url = url.rstrip("/")
        self._headers: dict[str, str | bytes] = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}".encode()  # as text, it would have to be Latin-1
        parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
        if parts.scheme not in ("http", "https"):
            raise Phi3ServeError(f"{url}: the scheme must be http or https, and is {parts.scheme}")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._root = parts.netloc, parts.path
        try:
            self._make(self._host)
        except http.client.InvalidURL as error:
            raise Phi3ServeError(f"{url} is not a URL: {error}") from None

    def get(self, path: str, *, also: int | None = None) -> Any:
        """The JSON at ``path``. ``also``: a status beside 200 with which an answer is not a refusal.

        Raises:
            Refused: it is not there, or not now.
            Unreachable: the server does not answer, or not with JSON.
        """
        try:
            return json.loads(self.get_text(path, also=also))
        except ValueError:
            raise Unreachable(f"{self.url}{path} answers, but not with JSON. Is it phi3-serve?") from None

    def model_id(self, name: str) -> str:
        """The id of the served model, or of its adapter, that ``name`` spells. Raises as ``get``."""
        return str(self.get(f"/v1/models/{quote(name, safe='/')}")["id"])

    def get_text(self, path: str, *, accept: str = "*/*", also: int | None = None) -> str:
        """The text at ``path``, in the media type ``accept``. Raises as ``get``."""
        with closing(self._make(self._host, timeout=_TIMEOUT_S)) as connection:
            answer = self._answer(connection, "GET", path, None, headers={"Accept": accept}, also=also)
            return self._read(answer).decode(errors="replace")

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """Post ``body`` and yield the JSON of each event, without the final ``[DONE]``.

        Raises:
            Refused: before the first event.
            Unreachable: the server does not answer, or the stream breaks.
        """
        with closing(self._make(self._host, timeout=_TIMEOUT_S)) as connection:
            answer = self._answer(connection, "POST", path, body)
            try:
                for line in answer:
                    if line.startswith(_END):
                        return
                    if line.startswith(_DATA):
                        yield json.loads(line[len(_DATA) :])
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Unreachable(f"{self.url}: the answer broke off: {error}") from error
            raise Unreachable(f"{self.url}: the answer broke off before its end")

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.url}: the answer broke off: {error}") from error

    def _answer(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        headers: Mapping[str, str] | None = None,
        also: int | None = None,
    ) -> http.client.HTTPResponse:
        sent = None if body is None else json.dumps(body)
        try:
            connection.request(method, self._root + path, sent, {**self._headers, **(headers or {})})
            answer = connection.getresponse()
            if answer.status in (http.client.OK, also):
                return answer
            raise _refusal(answer)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self.url} cannot be reached: {error}") from error


def _refusal(answer: http.client.HTTPResponse) -> Refused:
    text = answer.read(100_000).decode(errors="replace")
    try:
        body = json.loads(text)
        message = body["error"]["message"] if "error" in body else body["detail"]
    except (ValueError, KeyError, TypeError):
        location = answer.getheader("Location")
        redirect = f"The server redirects to {location}. Use the address of that server." if location else ""
        message = redirect or text[:500].strip() or f"The server answers {answer.status} {answer.reason}."
    retry_after = answer.getheader("Retry-After", "")
    return Refused(str(message), answer.status, float(retry_after) if retry_after.isdecimal() else None)
