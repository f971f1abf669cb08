"""What ``/api/tags``, ``/api/ps`` and ``/api/show`` say about a served model."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from phi3_serve.api.adapters import offered_adapters
from phi3_serve.api.model_files import ModelFiles
from phi3_serve.api.ollama.requests import DEFAULTS
from phi3_serve.api.ollama.schema import (
    OllamaModelDetails,
    OllamaRunningModel,
    OllamaServedModel,
    OllamaShowResponse,
)
from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.adapter import OfferedAdapter
from phi3_serve.core.variant_state import VariantState

FAMILY = "phi3"
_LATEST = ":latest"
_NEVER = "9999-12-31T23:59:59Z"
_LEVELS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "INT8", "int4": "INT4", "fp8": "FP8"}


def served_models(config: ModelConfig, state: VariantState, started: str) -> Sequence[OllamaServedModel]:
    """The entries of a model and its adapters in ``/api/tags``. ``started``: when the server started. Reads files."""
    model = OllamaServedModel(modified_at=started, **_common(config, state))
    details = _details_of_adapter(config, state)
    return [model, *(_adapter(model, details, adapter) for adapter in offered_adapters(config, state))]


def _adapter(model: OllamaServedModel, details: OllamaModelDetails, adapter: OfferedAdapter) -> OllamaServedModel:
    """The entry of an adapter, whose name is the tag."""
    name = f"{model.name.removesuffix(_LATEST)}:{adapter.name}"
    digest = _digest(f"{model.digest} {adapter.name} {adapter.source}@{adapter.revision or ''}")
    return model.model_copy(update={"name": name, "model": name, "digest": digest, "details": details})


def running_model(config: ModelConfig, state: VariantState) -> OllamaRunningModel:
    """The entry of ``/api/ps``. Reads files."""
    common = _common(config, state)
    is_on_gpu = state.engine is not None and state.engine.compute_capability is not None
    return OllamaRunningModel(
        expires_at=_expires_at(config),
        size_vram=common["size"] if is_on_gpu else 0,
        context_length=ModelFiles(config).context_length,
        **common,
    )


def shown_model(
    config: ModelConfig, state: VariantState, started: str, *, is_adapter: bool = False
) -> OllamaShowResponse:
    """The answer of ``/api/show`` for the model or for one of its adapters. Reads files."""
    defaults = config.defaults.over(DEFAULTS).given()
    del defaults["max_length"]  # the whole context
    return OllamaShowResponse(
        modified_at=started,
        details=_details_of_adapter(config, state) if is_adapter else _details(config, state),
        model_info=_model_info(config),
        parameters="\n".join(f"{name:<30} {value}" for name, value in defaults.items()),
        capabilities=["completion", "tools"],
    )


def _details_of_adapter(config: ModelConfig, state: VariantState) -> OllamaModelDetails:
    parent = f"{config.served_name}{_LATEST}"
    return _details(config, state).model_copy(update={"parent_model": parent})


def _common(config: ModelConfig, state: VariantState) -> dict[str, Any]:
    name = f"{config.served_name}{_LATEST}"
    return {
        "name": name,
        "model": name,
        "size": ModelFiles(config).weight_bytes or 0,
        "digest": _digest(f"{config.checkpoint}@{config.checkpoint_revision or ''}"),
        "details": _details(config, state),
    }


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _details(config: ModelConfig, state: VariantState) -> OllamaModelDetails:
    num_parameters = ModelFiles(config).num_parameters
    return OllamaModelDetails(
        parent_model="",
        format="safetensors",
        family=FAMILY,
        families=[FAMILY],
        parameter_size="" if num_parameters is None else _in_words(num_parameters),
        quantization_level=_LEVELS.get(_weights(config, state), ""),
    )


def _weights(config: ModelConfig, state: VariantState) -> str:
    """The quantization of the weights, or else their dtype; those of the engine if it runs."""
    engine = state.engine
    quantization = config.quantization if engine is None else engine.quantization
    if quantization != NO_QUANTIZATION:
        return quantization
    return config.dtype if engine is None else engine.weight_dtype


def _model_info(config: ModelConfig) -> dict[str, Any]:
    files = ModelFiles(config)
    figures = {
        "general.architecture": FAMILY,
        "general.basename": config.served_name,
        "general.parameter_count": files.num_parameters,
        f"{FAMILY}.context_length": files.context_length,
        f"{FAMILY}.block_count": files.num_layers,
        f"{FAMILY}.attention.head_count_kv": files.num_kv_heads,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _expires_at(config: ModelConfig) -> str:
    """When the model may sleep if nobody asks it again; ollama writes a distant year for a model that stays."""
    if config.min_replicas > 0:
        return _NEVER
    scaling = config.scaling
    idle_s = scaling.downscale_delay_s if scaling.sleep_after_s is None else scaling.sleep_after_s
    asleep_at = datetime.now(UTC) + timedelta(seconds=idle_s)
    return asleep_at.isoformat().replace("+00:00", "Z")


def _in_words(num_parameters: int) -> str:
    """As ollama writes it: 3.8B, 5.7M."""
    return f"{num_parameters / 1e9:.1f}B" if num_parameters >= 1e9 else f"{num_parameters / 1e6:.1f}M"
