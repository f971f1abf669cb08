"""OpenAI's files and batches."""

from pydantic import Field, field_validator

from phi3_serve.config.strict_model import StrictModel


class BatchesConfig(StrictModel):
    """OpenAI's files and batches."""

    directory: str | None = None
    """An absolute path, where files and batches are kept. Ingress replicas on several nodes need a directory that they
    share. By default there are no files and batches, and their routes answer 404."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Maximum part of the requests that a model computes at once that may be of batches. They never wait in a queue, so
    they take only what other requests leave."""
    max_file_bytes: int = Field(default=200 * 2**20, ge=1024)
    """Maximum size of an uploaded file; a larger one gets 413."""
    max_requests: int = Field(default=50_000, ge=1)
    """Maximum number of requests of a batch."""
    max_directory_bytes: int = Field(default=10 * 2**30, ge=1024)
    """Maximum size of all files together. Beyond it, uploads and new batches get 400; running batches go on."""
    keep_days: float = Field(default=30.0, gt=0, le=36_500)
    """Days after which a file is deleted, unless the client has chosen it, and an ended batch is forgotten."""

    @field_validator("directory")
    @classmethod
    def _check_absolute(cls, given: str | None) -> str | None:
        if given is not None and not given.startswith(("/", "~")):
            raise ValueError(f"must be an absolute path, and is {given!r}")
        return given
