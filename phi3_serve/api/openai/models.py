"""What ``/v1/models`` says about each served model and its adapters."""

from collections.abc import Sequence

from phi3_serve.api.adapters import offered_adapters
from phi3_serve.api.model_files import ModelFiles
from phi3_serve.api.openai.schema import Model
from phi3_serve.catalogue import is_local
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.variant_state import VariantState


def described_models(config: ModelConfig, state: VariantState, started: int) -> Sequence[Model]:
    """The entry of a model, then those of its adapters. Reads files.

    ``started``: when the server started, in seconds since 1970.
    """
    name = config.served_name
    model = Model(
        id=name,
        created=started,
        root=_root(name, config.checkpoint),
        parent=None,
        max_model_len=ModelFiles(config).context_length,
        state=state.state,
        detail=state.detail or None,
    )
    adapters = {f"{name}:{adapter.name}": adapter for adapter in offered_adapters(config, state)}
    return [
        model,
        *(
            model.model_copy(update={"id": id, "root": _root(id, adapter.source), "parent": name})
            for id, adapter in adapters.items()
        ),
    ]


def _root(name: str, source: str) -> str:
    """Where the weights come from. A path of the server is not shown."""
    return name if is_local(source) else source
