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
    """A hub with one repository, which is one directory. Weights are in LFS, as on the real one."""

    directory: Path
    asked: list[str]
    ranges: list[str]  # the header Range of each request for a part of a file
    repository, revision = REPOSITORY, REVISION
    answers_with: tuple[int, str] | None = None  # status and code of the error that every request gets
    breaks_off_at: int | None = None  # the byte of a file before which the connection ends

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.answers_with is not None:
            self._send(b"{}", *self.answers_with)
        elif self.path.startswith(f"/api/models/{self.repository}/revision/{self.revision}"):
            files = [{"rfilename": self._name(path)} for path in self._files()]
            self._send(json.dumps({"id": self.repository, "sha": self.revision, "siblings": files}).encode())
        elif self.path.startswith(f"/api/models/{self.repository}/tree/{self.revision}"):
            self._send(json.dumps([self._entry(path) for path in self._files()]).encode())
        elif self.path.startswith(f"/{self.repository}/resolve/{self.revision}/"):
            name = self.path.removeprefix(f"/{self.repository}/resolve/{self.revision}/").split("?")[0]
            path = self.directory / name
            self._send_file(path) if path.is_file() else self._send(b"", 404, "EntryNotFound")
        else:
            self._send(b'{"error": "Repository not found"}', 404, "RepoNotFound")

    do_HEAD = do_GET

    def _files(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file()]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.directory).as_posix()

    def _entry(self, path: Path) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": self._name(path), "size": path.stat().st_size}
        pointer = {"lfs": {"oid": self._etag(path), "size": path.stat().st_size, "pointerSize": 134}}
        return {**entry, "oid": "0" * 40, **pointer} if self._is_large(path) else {**entry, "oid": self._etag(path)}

    @staticmethod
    def _is_large(path: Path) -> bool:
        return path.suffix == ".safetensors"

    def _etag(self, path: Path) -> str:
        content = path.read_bytes()
        if self._is_large(path):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()

    def _send_file(self, path: Path) -> None:
        content, etag = path.read_bytes(), self._etag(path)
        wanted = self.headers.get("Range")
        if wanted is None or self.command == "HEAD":
            self._send(content, etag=etag)
            return
        self.ranges.append(wanted)
        first = int(wanted.removeprefix("bytes=").split("-")[0])
        self._send(content[first:], 206, etag=etag, first=first)

    def _send(self, body: bytes, status: int = 200, code: str = "", etag: str | None = None, first: int = 0) -> None:
        """``first`` is the position of ``body`` in its file."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if code:
            self.send_header("X-Error-Code", code)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{first + len(body)}")
        if etag is not None:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", self.revision)
        self.end_headers()
        if self.command == "GET":
            last = self.breaks_off_at if etag is not None else None
            self.wfile.write(body if last is None else body[: max(0, last - first)])
            self.close_connection = last is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running_hub(
    directory: Path, *, repository: str = REPOSITORY, revision: str = REVISION
) -> Iterator[tuple[type[Hub], str]]:
    """A hub whose one repository is ``directory``, and its URL."""
    values = {"directory": directory, "asked": [], "ranges": [], "repository": repository, "revision": revision}
    handler = type("HubHere", (Hub,), values)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield handler, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
