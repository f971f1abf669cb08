"""What a source on this machine holds: a checkpoint directory, or a GGUF file."""

from pathlib import Path

from phi3_serve.engine.checkpoint import CONFIG, Checkpoint, open_checkpoint
from phi3_serve.errors import CheckpointError

GGUF_SUFFIX = ".gguf"


def open_source(source: Path, file: str | None = None) -> Checkpoint:
    """Check the checkpoint at ``source``; ``file`` is the name of its GGUF file, if it has several.

    Raises:
        CheckpointIncomplete: a part is missing or cannot be read.
        CheckpointError: it cannot be served, or it is not clear which GGUF file is meant. The message names the file.
    """
    path = source if file is None else source / file
    if path.is_dir() and not (path / CONFIG).exists():
        path = _only_gguf_file(path) or path
    if path.suffix != GGUF_SUFFIX:
        return open_checkpoint(path)
    from phi3_serve.engine.gguf.checkpoint import open_gguf  # the engine runs without the library gguf

    return open_gguf(path)


def _only_gguf_file(directory: Path) -> Path | None:
    found = sorted(directory.glob(f"*{GGUF_SUFFIX}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(f"{directory}: there are {len(found)} GGUF files; `file` must be one of {names}")
    return found[0] if found else None
