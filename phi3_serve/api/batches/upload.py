"""The form of ``POST /v1/files``, written to the disk while it comes: a file may be larger than the memory."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from phi3_serve.api.batches.schema import FILE_FORM, MAX_EXPIRY_S, MIN_EXPIRY_S, PURPOSE
from phi3_serve.batch.file_store import NewFile
from phi3_serve.errors import InvalidRequest, Phi3ServeError, did_you_mean

FORM_BYTES = 2**16
"""More than the form needs around a file."""
_MAX_FIELD_BYTES = 1024
_MAX_FILENAME = 255  # characters
_LOOK_EVERY_BYTES = 4 * 2**20  # files that come at the same time fill the directory together
_FIELDS = tuple(FILE_FORM["properties"])


@dataclass(frozen=True, slots=True)
class Room:
    """How large a file may be, and the error for a larger one."""

    max_bytes: int
    too_large: Phi3ServeError
    require_space: Callable[[], None]  # raises an error if the directory has more than it may have


class FileForm:
    """The fields of the form; the content of its file goes into ``file``."""

    def __init__(self, boundary: bytes, file: NewFile, room: Room) -> None:
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self._file = file
        self._room = room
        self._is_complete = False
        self._look_at = _LOOK_EVERY_BYTES  # bytes of the file
        self._header, self._value = b"", b""
        self._disposition = b""
        self._field: str | None = None  # the one that comes now; None is the file
        self._content = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_to_header,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_content,
                "on_part_data": self._add_content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """Take the next part of the body.

        Raises:
            FormParserError: it is not a form.
            InvalidRequest: it has other fields.
            Phi3ServeError: the file is too large.
        """
        self._parser.write(data)

    def check(self) -> None:
        """Raise InvalidRequest if the form is not complete."""
        if not self._is_complete:
            raise InvalidRequest("The body ends before the end of the multipart form.")
        if self.filename is None:
            raise InvalidRequest("`file` is missing: send the file with its name as a part of the form.", "file")
        if "purpose" not in self.fields:
            raise InvalidRequest(f'`purpose` is missing; it must be "{PURPOSE}".', "purpose")
        if self.fields["purpose"] != PURPOSE:
            raise InvalidRequest(f'`purpose` must be "{PURPOSE}": files are only for batches here.', "purpose")

    def _begin_part(self) -> None:
        self._disposition = b""
        self._content.clear()

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if name not in _FIELDS:
            raise InvalidRequest(f"`{name[:64]}` is not a field of this form{did_you_mean(name, _FIELDS)}", name[:64])
        if name in self.fields or (name == "file" and self.filename is not None):
            raise InvalidRequest(f"`{name}` is sent twice.", name)
        if name == "file":
            self.filename = options.get(b"filename", b"").decode(errors="replace")[:_MAX_FILENAME] or "file"
        self._field = None if name == "file" else name

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._field is not None:
            self._content += data[start:end]
            if len(self._content) > _MAX_FIELD_BYTES:
                raise InvalidRequest(f"`{self._field}` has more than {_MAX_FIELD_BYTES:,} bytes.", self._field)
            return
        if self._file.num_bytes + end - start > self._room.max_bytes:
            raise self._room.too_large
        self._file.write(memoryview(data)[start:end])
        if self._file.num_bytes >= self._look_at:
            self._look_at = self._file.num_bytes + _LOOK_EVERY_BYTES
            self._room.require_space()

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._content.decode(errors="replace")

    def _end(self) -> None:
        self._is_complete = True


class InThread(Protocol):
    """Runs a function in a thread."""

    def __call__(self, work: Callable[[bytes], None], data: bytes, /) -> Awaitable[None]:
        """Run ``work(data)``."""


async def read_form(http: Request, file: NewFile, room: Room, in_thread: InThread) -> FileForm:
    """The complete form of ``http``; ``in_thread`` writes its file to ``file``.

    Raises:
        InvalidRequest: the body is not this form, or breaks off.
        Phi3ServeError: the file is larger than its ``room``.
    """
    try:
        form = FileForm(_boundary(http), file, room)
        async for data in http.stream():
            await in_thread(form.write, data)
    except FormParserError as error:
        raise InvalidRequest(f"The body is not a multipart form: {error}.") from None
    except ClientDisconnect:
        raise InvalidRequest("The client has disconnected before the end of the body.") from None
    form.check()
    return form


def _boundary(http: Request) -> bytes:
    given = http.headers.get("content-type", "")
    media_type, options = parse_options_header(given)
    if media_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(
            "The Content-Type header must be multipart/form-data with a boundary; "
            f"it is {given[:80] or 'missing'}. Send the file as a form."
        )
    return options[b"boundary"]


def expiry_of(fields: Mapping[str, str]) -> int | None:
    """Seconds after which the file is deleted; None if the form does not say it.

    Raises:
        InvalidRequest: it is out of range, or half of it is missing.
    """
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest('`expires_after[anchor]` must be "created_at".', "expires_after[anchor]")
    if seconds is None or not seconds.isdecimal() or not MIN_EXPIRY_S <= int(seconds[:20]) <= MAX_EXPIRY_S:
        raise InvalidRequest(
            f"`expires_after[seconds]` must be a whole number from {MIN_EXPIRY_S:,} to {MAX_EXPIRY_S:,}.",
            "expires_after[seconds]",
        )
    return int(seconds)
