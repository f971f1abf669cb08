"""transformers' own modules over the weights that the engine loads: the reference for what the engine computes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, Phi3ForCausalLM

from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.engine.loader import LoadedModel, load
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear
from phi3_serve.engine.weights import Phi3Weights


def load_with_modules(
    source: Path, *, device: str = "cpu", dtype: str = "float32", quantization: str = NO_QUANTIZATION
) -> LoadedModel:
    """What ``load`` gives, with a ``Phi3ForCausalLM`` as its model. The engine can run it, too."""
    loaded = load("tested", str(source), None, device=device, dtype=dtype, quantization=quantization)
    model = modules_over(loaded.model)
    if (source / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return replace(loaded, model=model)


def modules_over(weights: Phi3Weights) -> Any:
    """A ``Phi3ForCausalLM`` that shares ``weights``; typed Any because type checkers reject its methods."""
    with torch.device("meta"):
        model: Any = Phi3ForCausalLM._from_config(weights.config, attn_implementation="sdpa")
    model.model.rotary_emb = type(model.model.rotary_emb)(weights.config).to(weights.device)  # computed, not stored
    for path, module in weights.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | QuantizedLinear | QuantizedEmbedding):
            model.set_submodule(path, module)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):  # of a norm
            model.get_submodule(path).weight = module.weight
    return model.eval()
