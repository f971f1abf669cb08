"""Models of a named shape with random weights, made in memory: the cost of a forward pass depends only on sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, Phi3Config, Phi3ForCausalLM

from phi3_serve.catalogue import EMBEDDED_TINY, NO_QUANTIZATION
from phi3_serve.engine.adapters import places
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.kernels.contract import LowRank
from phi3_serve.engine.kernels.select import select_weight_kernels
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.model.linear import compute_dtype
from phi3_serve.engine.quantization import quantize_model
from phi3_serve.parameters import GenerationParameters

NO_END = -1  # no end-of-sequence token: all answers have the same length


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes of a Phi-3 model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    context_length: int = 4096


SHAPES: Mapping[str, Sizes] = {
    "small": Sizes(hidden_size=1024, intermediate_size=2816, num_layers=16, num_heads=16, num_kv_heads=16),
    "mini": Sizes(hidden_size=3072, intermediate_size=8192, num_layers=32, num_heads=32, num_kv_heads=32),
    "medium": Sizes(hidden_size=5120, intermediate_size=17920, num_layers=40, num_heads=40, num_kv_heads=10),
    "probe": Sizes(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2, num_kv_heads=2),  # for tests
}


def sizes_of(shape: str) -> Sizes:
    """The sizes of ``shape``: a name in ``SHAPES``, or ``NAME:LAYERS`` for fewer or more decoder layers.

    Raises:
        ValueError: there is no such shape.
    """
    name, colon, layers = shape.partition(":")
    if name not in SHAPES or (colon and not (layers.isdecimal() and int(layers))):
        raise ValueError(f"{shape!r} is not one of {', '.join(SHAPES)}, and not one of them with :LAYERS.")
    return replace(SHAPES[name], num_layers=int(layers)) if colon else SHAPES[name]


def config(shape: str) -> Phi3Config:
    """The configuration of ``shape``, with Phi-3's vocabulary and 4k context."""
    sizes = sizes_of(shape)
    return Phi3Config(
        vocab_size=32_064,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        max_position_embeddings=sizes.context_length,
        original_max_position_embeddings=sizes.context_length,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )


@dataclass(frozen=True, slots=True)
class Model:
    """The shape, device and dtypes of a model, and how its weights are rounded."""

    shape: str
    device: str
    dtype: torch.dtype  # of the weights
    quantization: str = NO_QUANTIZATION
    computed: torch.dtype | None = None  # what it computes in; None: in that of the weights, if the processor does

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the engine computes in."""
        return compute_dtype(self.computed or self.dtype, torch.device(self.device))


def build(wanted: Model, seed: int = 0) -> Any:
    """A Phi3ForCausalLM with weights drawn from ``seed``, then rounded. Linear layers have the dtype of the weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(wanted.computed or wanted.dtype)
    try:
        with torch.random.fork_rng(), torch.device(wanted.device):
            torch.manual_seed(seed)
            model = Phi3ForCausalLM(config(wanted.shape))
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig(pad_token_id=0)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.to(wanted.dtype)
    if wanted.quantization != NO_QUANTIZATION:
        quantize_model(model, wanted.quantization, select_weight_kernels(model.device))
    return model.eval()


def as_loaded(model: Any, quantization: str = NO_QUANTIZATION) -> LoadedModel:
    """``model`` in the form of the loader's result."""
    return LoadedModel(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(EMBEDDED_TINY, local_files_only=True),
        defaults=GenerationParameters(),
        context_length=model.config.max_position_embeddings,
        vocab_size=model.config.vocab_size,
        quantization=quantization,
    )


def adapter(config: Any, rank: int, dtype: torch.dtype, seed: int) -> LoadedAdapter:
    """An adapter of random weights for all linear layers of a model but its head, computed in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(size: int) -> torch.Tensor:
        return (0.02 * torch.randn(rank, size, generator=generator)).to(dtype)

    *sizes, _ = places.shapes(config)
    changes = [LowRank(drawn(inputs), drawn(outputs), 2.0) for outputs, inputs in sizes]
    return LoadedAdapter(f"adapter-{seed}", [*changes, None])
