"""What the ingress knows of a model's checkpoint without loading it: from the catalogue, else from its files."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from phi3_serve.catalogue import Variant
from phi3_serve.config.model import ModelConfig


class ModelFiles:
    """The checkpoint of one model. Each figure is None if the model is in neither the catalogue nor a directory."""

    def __init__(self, config: ModelConfig) -> None:
        self._directory = Path(config.checkpoint)
        self._variant: Variant | None = config.variant if config.source is None else None

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and answer together."""
        return self._number("max_position_embeddings") if self._variant is None else self._variant.context_length

    @property
    def num_layers(self) -> int | None:
        """Layers of the decoder."""
        return self._number("num_hidden_layers") if self._variant is None else self._variant.num_layers

    @property
    def num_kv_heads(self) -> int | None:
        """Heads of keys and values."""
        return self._number("num_key_value_heads") if self._variant is None else self._variant.num_kv_heads

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of the weights as they are stored."""
        if self._variant is not None:
            return self._variant.weight_bytes()
        try:
            return sum(file.stat().st_size for file in self._directory.glob("*.safetensors")) or None
        except OSError:
            return None

    @property
    def num_parameters(self) -> int | None:
        """Numbers in the weights."""
        if self._variant is not None:
            return self._variant.num_parameters
        num_bytes = {"float32": 4, "float16": 2, "bfloat16": 2}.get(
            str(self._content.get("dtype") or self._content.get("torch_dtype"))
        )
        return None if num_bytes is None or self.weight_bytes is None else self.weight_bytes // num_bytes

    def _number(self, name: str) -> int | None:
        value = self._content.get(name)
        return value if isinstance(value, int) else None

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        """``config.json``; empty if this machine does not have it."""
        try:
            content = json.loads((self._directory / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}
