"""transformers' own modules over the weights and cache of the engine: the reference for what it computes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import Cache, GenerationConfig, Phi3ForCausalLM

from phi3_serve.catalogue import FP8, NO_QUANTIZATION
from phi3_serve.engine.kernels.kv_cache import EIGHT_BITS, KvCacheDtype, rounded
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear, quantize_model
from phi3_serve.engine.weights import Phi3Weights

SHAKEN_BY = 2e-6
_UPDATE = Cache.update


def load_with_modules(
    source: Path, *, device: str = "cpu", dtype: str = "float32", quantization: str = NO_QUANTIZATION
) -> LoadedModel:
    """What ``load`` gives, with a ``Phi3ForCausalLM`` as its model. The engine can run it, too."""
    if device == "cpu":
        loaded = load_on_cpu("tested", source, dtype=dtype, quantization=quantization)
    else:
        loaded = load("tested", str(source), None, device=device, dtype=dtype, quantization=quantization)
    model = modules_over(loaded.model)
    if (source / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(source)
    return replace(loaded, model=model)


def load_on_cpu(name: str, source: Path, *, dtype: str, quantization: str) -> LoadedModel:
    """What ``load`` gives on the CPU. It has fp8, too, which a server refuses there because it is slow."""
    as_stored = NO_QUANTIZATION if quantization == FP8 else quantization
    loaded = load(name, str(source), None, device="cpu", dtype=dtype, quantization=as_stored)
    if quantization != FP8:
        return loaded
    quantize_model(loaded.model, FP8, select_weight_kernels(loaded.model.device))
    return replace(loaded, quantization=FP8)


def modules_over(weights: Phi3Weights) -> Any:
    """A ``Phi3ForCausalLM`` that shares ``weights``; typed Any because type checkers reject its methods.

    Weights that the loader has kept in 16 bits are made as wide as the others before.
    """
    for module in weights.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data = module.weight.data.to(weights.dtype)  # of a tied head, too
    with torch.device("meta"):
        model: Any = Phi3ForCausalLM._from_config(weights.config, attn_implementation="sdpa")
    model.model.rotary_emb = type(model.model.rotary_emb)(weights.config).to(weights.device)  # computed, not stored
    for path, module in weights.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | QuantizedLinear | QuantizedEmbedding):
            model.set_submodule(path, module)
        elif isinstance(getattr(module, "weight", None), nn.Parameter):  # of a norm
            model.get_submodule(path).weight = module.weight
    return model.eval()


@contextmanager
def rounded_cache(kv_cache_dtype: KvCacheDtype, shaken_by: int | None = None) -> Iterator[None]:
    """While the context lasts, transformers rounds keys and values to 8 bits as they come into its cache.

    With ``shaken_by``, a seed, they move by two parts in a million before, so that what lies on the edge between two
    values falls to the other side.
    """
    if kv_cache_dtype == "auto":
        yield
        return
    noise = None if shaken_by is None else torch.Generator().manual_seed(shaken_by)

    def rounded_update(self: Cache, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
        meant: list[Any] = []
        for numbers in (keys, values):
            if noise is not None:
                numbers = numbers * (1 + SHAKEN_BY * torch.randn(numbers.shape, generator=noise))
            stored, scales = rounded(numbers, EIGHT_BITS[kv_cache_dtype])
            meant.append((stored.float() * scales[..., None]).to(numbers.dtype))
        return _UPDATE(self, *meant, *args, **kwargs)

    with patch.object(Cache, "update", rounded_update):
        yield
