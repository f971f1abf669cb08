"""Rotary position embedding with short or long factors for each token.

Su et al. 2021, https://arxiv.org/abs/2104.09864; LongRoPE: Ding et al. 2024, https://arxiv.org/abs/2402.13753.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from phi3_serve.engine.weights import head_dim


class Rope:
    """The rotations of a Phi-3 model with a ``Phi3Config``, as ``Phi3RotaryEmbedding`` computes them."""

    def __init__(self, config: Any, device: torch.device) -> None:
        self.long_factors_from: int | None = None  # tokens; a forward pass over this many takes the long factors
        self._scaling = 1.0
        if config.rope_parameters["rope_type"] == "longrope":
            original = int(
                config.rope_parameters.get("original_max_position_embeddings")
                or config.original_max_position_embeddings
            )
            self.long_factors_from = original + 1
            compute = ROPE_INIT_FUNCTIONS["longrope"]
            short, self._scaling = compute(config, seq_len=original)
            frequencies = [short, compute(config, seq_len=self.long_factors_from)[0]]
        else:
            frequencies = [_frequencies(config)]
        self._frequencies = torch.stack([f.float() for f in frequencies]).to(device)  # [short and long, half]

    def rotation(self, positions: Tensor, uses_long_factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine for the dimensions that rotate, [tokens, 1, rotary dimensions].

        The sine of the first half of the dimensions is negated, so that ``x * cosine + swapped_halves(x) * sine``
        is the rotated ``x``.

        Args:
            positions: int64 [tokens].
            uses_long_factors: int64 [tokens], 1 for tokens that take the long factors, else 0.
            dtype: of the result; the angles are computed in float32.
        """
        angles = positions[:, None].float() * self._frequencies[uses_long_factors]
        cosine, sine = angles.cos() * self._scaling, angles.sin() * self._scaling
        return (
            torch.cat((cosine, cosine), -1)[:, None].to(dtype),
            torch.cat((-sine, sine), -1)[:, None].to(dtype),
        )


def _frequencies(config: Any) -> Tensor:
    """Of RoPE without factors, [half of the dimensions that rotate]."""
    dim = rotary_dim(config)
    frequencies: Tensor = 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim))
    return frequencies


def rotary_dim(config: Any) -> int:
    """The dimensions of a head that rotate."""
    return int(head_dim(config) * config.rope_parameters.get("partial_rotary_factor", 1.0))
