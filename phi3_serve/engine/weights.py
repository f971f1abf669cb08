"""The places of a Phi-3 model's weights, by the names that checkpoints give them.

They are the names of ``Phi3ForCausalLM`` in modeling_phi3.py of transformers 5.23. Its modules can also compute, which
takes three seconds and 170 MB to import; here the decoder computes.
"""

from typing import Any

import torch
from torch import nn


class Phi3Weights(nn.Module):
    """The weights of a model with a ``Phi3Config``.

    They have shapes and no values, on the device ``meta``, until a loader sets them.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype  # of the weights that are not quantised
        with torch.device("meta"):
            self.model = _Body(config)
            self.lm_head = _matrix(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.norm.weight.device


class _Body(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = _Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size)


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = _Mlp(config)
        self.input_layernorm = _Norm(config.hidden_size)
        self.post_attention_layernorm = _Norm(config.hidden_size)


class _Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        dim = head_dim(config)
        width = config.num_attention_heads * dim
        self.o_proj = _matrix(width, config.hidden_size)
        self.qkv_proj = _matrix(config.hidden_size, width + 2 * config.num_key_value_heads * dim)


class _Mlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_up_proj = _matrix(config.hidden_size, 2 * config.intermediate_size)
        self.down_proj = _matrix(config.intermediate_size, config.hidden_size)


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))


def _matrix(num_inputs: int, num_outputs: int) -> nn.Linear:
    return _Linear(num_inputs, num_outputs, bias=False)


class _Linear(nn.Linear):
    def reset_parameters(self) -> None:
        """Draw no values: on the device ``meta`` that imports ``torch._dynamo``."""


class _Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """See ``_Linear``."""


def head_dim(config: Any) -> int:
    """The dimensions of one attention head."""
    dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return dim
