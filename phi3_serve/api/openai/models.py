"""What ``/v1/models`` says about each served model."""

from phi3_serve.api.model_files import ModelFiles
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
        max_model_len=ModelFiles(config).context_length,
        state=state.state,
        detail=state.detail or None,
    )
