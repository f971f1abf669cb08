"""The chat page and the files that it loads, read once. Its policy permits only these, and calls to its own server."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".woff2": "font/woff2",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text becomes elements only by the sanitizer: https://www.w3.org/TR/trusted-types/
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
"""The Content-Security-Policy of the page."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page."""

    content: bytes
    compressed: bytes  # by gzip
    media_type: str


@dataclass(frozen=True, slots=True)
class ChatPage:
    """The page, and what it loads by paths relative to this folder. ``version`` changes with the content."""

    version: str
    html: str
    files: Mapping[str, PageFile]


@cache
def chat_page() -> ChatPage:
    """The page at ``/ui``."""
    paths = [path for path in sorted(_FOLDER.rglob("*")) if path.suffix in _MEDIA_TYPES]
    files = {path.relative_to(_FOLDER).as_posix(): _read(path) for path in paths}
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(name.encode() + b"\0" + file.content)
    version = digest.hexdigest()[:16]
    html = (_FOLDER / "page.html").read_text(encoding="utf-8").replace("VERSION", version)
    return ChatPage(version, html, files)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, gzip.compress(content, mtime=0), _MEDIA_TYPES[path.suffix])
