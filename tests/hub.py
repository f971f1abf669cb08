"""A model hub on this machine, with the answers that a snapshot download needs."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY, REVISION = "microsoft/Phi-3-test-instruct", "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository, which is one directory."""

    directory: Path
    asked: list[str]
    answers_with: tuple[int, str] | None = None  # status and code of the error that every request gets

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.answers_with is not None:
            self._send(b"{}", *self.answers_with)
        elif self.path.startswith(f"/api/models/{REPOSITORY}/revision/{REVISION}"):
            files = [{"rfilename": p.name} for p in self.directory.iterdir()]
            self._send(json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": files}).encode())
        elif self.path.startswith(f"/api/models/{REPOSITORY}/tree/{REVISION}"):
            entries: list[dict[str, object]] = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": self._etag(p)}
                for p in self.directory.iterdir()
            ]
            self._send(json.dumps(entries).encode())
        elif self.path.startswith(f"/{REPOSITORY}/resolve/{REVISION}/"):
            path = self.directory / self.path.rsplit("/", 1)[-1].split("?")[0]
            self._send(path.read_bytes(), etag=self._etag(path)) if path.is_file() else self._send(
                b"", 404, "EntryNotFound"
            )
        else:
            self._send(b'{"error": "Repository not found"}', 404, "RepoNotFound")

    do_HEAD = do_GET

    @staticmethod
    def _etag(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def _send(self, body: bytes, status: int = 200, code: str = "", etag: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        if etag is not None:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running_hub(directory: Path) -> Iterator[tuple[type[Hub], str]]:
    """A hub whose one repository is ``directory``, and its URL."""
    handler = type("HubHere", (Hub,), {"directory": directory, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
