"""What ``/v1/models`` says about each served model."""

import json
from pathlib import Path

from phi3_serve.api.openai.schema import Model
from phi3_serve.catalogue import is_local
from phi3_serve.config import ModelConfig
from phi3_serve.core import VariantState


def describe_model(config: ModelConfig, state: VariantState, started: int) -> Model:
    """The entry of one model. ``started``: when the server started, in seconds since 1970. Reads a file."""
    return Model(
        id=config.served_name,
        created=started,
        root=config.served_name if is_local(config.checkpoint) else config.checkpoint,
        max_model_len=_context_length(config),
        state=state.state,
        detail=state.detail or None,
    )


def _context_length(config: ModelConfig) -> int | None:
    """From the catalogue; for another source from its config.json, if this machine has the file."""
    if config.source is None and config.variant is not None:
        return config.variant.context_length
    try:
        content = json.loads((Path(config.checkpoint) / "config.json").read_text(encoding="utf-8"))
        return int(content["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
