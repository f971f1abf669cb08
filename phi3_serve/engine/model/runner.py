"""The only forward pass: token ids in, scores of the next tokens out.

It runs on the modules of ``Phi3ForCausalLM``, which hold the weights; the order of operations is that of
modeling_phi3.py in transformers 5.23, with other ways to the same numbers: linear layers packed, what is between them
in few passes over the data, paged keys and values, and no mask over the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from phi3_serve.engine.kernels.cpu import operations_for
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.model.attention import AttentionPlan, paged_attention
from phi3_serve.engine.model.linear import Linear, compute_dtype, fastest_form, padded_rows
from phi3_serve.engine.model.rope import Rope


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer's weights, in the form they are used in."""

    attention_norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class ModelRunner:
    """A model and the cache of its keys and values."""

    def __init__(self, model: Any, *, num_blocks: int, releases_weights: bool = False) -> None:
        """Make ready to run ``model``, a Phi3ForCausalLM; ``releases_weights`` frees those that are held packed."""
        config = model.config
        self.device: torch.device = model.device
        self.dtype = compute_dtype(model.dtype, self.device)
        self.rope = Rope(model)
        self._window: int | None = config.sliding_window
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._epsilon: float = config.rms_norm_eps
        self._embedding: Tensor = model.model.embed_tokens.weight.detach()
        self._norm = model.model.norm.weight.detach().to(self.dtype)
        self._layers = self._take_layers(model, releases_weights)
        # The keys' heads, then the values'.
        shape = (len(self._layers), 2 * self._num_kv_heads, num_blocks * BLOCK_SIZE, self._head_dim)
        # Zeros, since masked reads may meet what nobody has written. The system gives memory only as it is written to.
        self._cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._operations = operations_for(self.device, self.dtype, self._head_dim)

    def _take_layers(self, model: Any, releases_weights: bool) -> list[_Layer]:
        form = fastest_form([layer.mlp.gate_up_proj.weight.detach() for layer in model.model.layers], self.dtype)

        def take(module: nn.Linear) -> Linear:
            layer = form(module.weight.detach().to(self.dtype))
            if releases_weights and module.weight.data_ptr() != self._embedding.data_ptr():
                module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
            return layer

        layers = [
            _Layer(
                attention_norm=layer.input_layernorm.weight.detach().to(self.dtype),
                qkv=take(layer.self_attn.qkv_proj),
                out=take(layer.self_attn.o_proj),
                mlp_norm=layer.post_attention_layernorm.weight.detach().to(self.dtype),
                gate_up=take(layer.mlp.gate_up_proj),
                down=take(layer.mlp.down_proj),
            )
            for layer in model.model.layers
        ]
        self._head = take(model.lm_head)
        return layers

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the keys and values of whole blocks, (from, to); all are read before any is written."""
        if pairs:
            sources, targets = (
                (torch.tensor(blocks)[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten().to(self.device)
                for blocks in zip(*pairs, strict=True)
            )
            self._cache.index_copy_(2, targets, self._cache.index_select(2, sources))

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """The scores of what follows, float32 [sum of num_logits, vocabulary], in the order of ``chunks``."""
        ids = self._rows([i for chunk in chunks for i in chunk.token_ids])
        positions = self._rows([p for c in chunks for p in range(c.start, c.end)])
        is_long = self._rows([int(c.sequence.is_long_at(len(c.sequence))) for c in chunks for _ in range(c.num_tokens)])
        slots = torch.tensor([c.sequence.slot(p) for c in chunks for p in range(c.start, c.end)], device=self.device)
        rotation = self.rope.rotation(positions, is_long, self.dtype)
        plan = AttentionPlan(chunks, self._operations, window=self._window, like=self._cache)
        hidden = embedding(ids, self._embedding).to(self.dtype)
        delta = torch.zeros_like(hidden)  # what is still to be added to hidden
        for layer, cache in zip(self._layers, self._cache, strict=True):
            delta = self._run_layer(layer, hidden, delta, cache, rotation, slots, plan)
        return self._scores(hidden, delta, chunks)

    def _rows(self, of_tokens: list[int]) -> Tensor:
        """One row for each token, and rows that nobody reads up to a number that other steps have too."""
        padding = [0] * (padded_rows(len(of_tokens)) - len(of_tokens))
        return torch.tensor(of_tokens + padding, dtype=torch.long, device=self.device)

    def _run_layer(
        self,
        layer: _Layer,
        hidden: Tensor,
        delta: Tensor,
        cache: Tensor,
        rotation: tuple[Tensor, Tensor],
        slots: Tensor,
        plan: AttentionPlan,
    ) -> Tensor:
        """Add ``delta``, which the layer before gave, to ``hidden``; returns what this layer gives to be added."""
        do = self._operations
        normed = do.add_rms_norm(hidden, delta, layer.attention_norm, self._epsilon)
        qkv = layer.qkv(normed).view(len(hidden), -1, self._head_dim)
        do.rotate_and_store(qkv, rotation, slots, cache)
        attended = paged_attention(qkv, cache, plan, self._head_dim**-0.5)
        normed = do.add_rms_norm(hidden, layer.out(attended), layer.mlp_norm, self._epsilon)
        return layer.down(do.silu_product(layer.gate_up(normed)))

    def _scores(self, hidden: Tensor, delta: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        wanted: list[int] = []
        end = 0
        for chunk in chunks:
            end += chunk.num_tokens
            wanted += range(end - chunk.num_logits, end)
        last = self._rows(wanted)
        normed = self._operations.add_rms_norm(hidden[last], delta[last], self._norm, self._epsilon)
        return self._head(normed)[: len(wanted)].float()
