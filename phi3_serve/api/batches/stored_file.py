"""A file that a request names."""

from phi3_serve.batch.file_store import FileStore, StoredFile
from phi3_serve.errors import NotFound


def file_of(files: FileStore, id: str, param: str = "file_id") -> StoredFile:
    """The file ``id``; ``param`` is the field that names it.

    Raises:
        NotFound: it is not there.
    """
    if (file := files.get(id)) is None:
        raise no_file(id, param)
    return file


def no_file(id: str, param: str = "file_id") -> NotFound:
    """The error for a file that is not there; ``param`` is the field that names it."""
    return NotFound(f"There is no file {id[:64]!r}. It was never made with this API key, or was deleted.", param)
