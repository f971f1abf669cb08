"""Rotary position embedding with short or long factors per token (Su et al. 2021; LongRoPE: Ding et al. 2024)."""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


class Rope:
    """The rotations of a Phi-3 model, as ``Phi3RotaryEmbedding`` makes them."""

    def __init__(self, model: Any) -> None:
        config, module = model.config, model.model.rotary_emb
        self.scaling: float = module.attention_scaling
        self.long_from: int | None = None  # tokens; a pass over this many takes the long factors
        frequencies = [module.original_inv_freq]
        if config.rope_parameters["rope_type"] == "longrope":
            original = int(
                config.rope_parameters.get("original_max_position_embeddings")
                or config.original_max_position_embeddings
            )
            self.long_from = original + 1
            initialise = ROPE_INIT_FUNCTIONS["longrope"]
            frequencies = [initialise(config, model.device, seq_len=length)[0] for length in (original, self.long_from)]
        self._frequencies = torch.stack([f.float() for f in frequencies]).to(model.device)  # [short and long, half]

    def rotation(self, positions: Tensor, is_long: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine, [tokens, 1, rotary dimensions]; see ``kernels.reference.rotate_``."""
        angles = positions[:, None].float() * self._frequencies[is_long]
        cosine, sine = angles.cos() * self.scaling, angles.sin() * self.scaling
        return (
            torch.cat((cosine, cosine), -1)[:, None].to(dtype),
            torch.cat((-sine, sine), -1)[:, None].to(dtype),
        )
