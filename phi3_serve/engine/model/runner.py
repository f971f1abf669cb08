"""The only forward pass: token ids in, logits of the next tokens out.

It takes the weights from the modules of ``Phi3ForCausalLM`` and computes in the order of modeling_phi3.py in
transformers 5.23, with its own implementation of each operation: linear layers in the fastest form for the machine,
kernels between them, a paged key-value cache, and no attention mask over the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from phi3_serve.engine.kernels.select import select_kernels
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.model.attention import AttentionPlan, attention
from phi3_serve.engine.model.linear import Linear, compute_dtype, fastest_form, padded_rows
from phi3_serve.engine.model.rope import Rope


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of one decoder layer."""

    attention_norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class ModelRunner:
    """A model and its key-value cache."""

    def __init__(self, model: Any, *, num_blocks: int, releases_weights: bool = False) -> None:
        """Prepare to run ``model``, a Phi3ForCausalLM.

        ``releases_weights`` removes from ``model`` the weights that the runner holds in another form.
        """
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
        # [layers, heads of the keys and then of the values, slots, dim]
        shape = (len(self._layers), 2 * self._num_kv_heads, num_blocks * BLOCK_SIZE, self._head_dim)
        # Masked attention may read slots that were never written, so they must be numbers. On Linux, zeroed memory is
        # only allocated when it is written.
        self._cache = torch.zeros(shape, dtype=self.dtype, device=self.device)
        self._kernels = select_kernels(self.device, self.dtype, self._head_dim)

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
        """Copy the keys and values of whole blocks, (from, to). All are read before any is written."""
        if pairs:
            sources, targets = (
                (torch.tensor(blocks)[:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE)).flatten().to(self.device)
                for blocks in zip(*pairs, strict=True)
            )
            self._cache.index_copy_(2, targets, self._cache.index_select(2, sources))

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> Tensor:
        """Run ``chunks`` and return their logits, float32 [sum of num_logits, vocabulary], in the same order."""
        ids = self._padded([i for chunk in chunks for i in chunk.token_ids])
        positions = self._padded([p for c in chunks for p in range(c.start, c.end)])
        slots = torch.tensor([c.sequence.slot(p) for c in chunks for p in range(c.start, c.end)], device=self.device)
        rotation = self.rope.rotation(positions, self._uses_long_factors(chunks), self.dtype)
        plan = AttentionPlan(chunks, self._kernels, window=self._window, like=self._cache)
        hidden = embedding(ids, self._embedding).to(self.dtype)
        delta = torch.zeros_like(hidden)  # the output of the previous layer, not yet added to hidden
        for layer, cache in zip(self._layers, self._cache, strict=True):
            delta = self._run_layer(layer, hidden, delta, cache, rotation, slots, plan)
        return self._logits(hidden, delta, chunks)

    def _uses_long_factors(self, chunks: Sequence[Chunk]) -> Tensor:
        flags: list[int] = []
        for chunk in chunks:
            is_long = chunk.sequence.needs_long_factors(len(chunk.sequence))
            flags += [int(is_long)] * chunk.num_tokens
        return self._padded(flags)

    def _padded(self, of_tokens: list[int]) -> Tensor:
        """One number for each token, then zeros up to a number of rows that the linear layers compute fast."""
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
        """Add ``delta``, the output of the previous layer, to ``hidden`` in place; returns this layer's output."""
        kernels = self._kernels
        normed = kernels.add_rms_norm(hidden, delta, layer.attention_norm, self._epsilon)
        qkv = layer.qkv(normed).view(len(hidden), -1, self._head_dim)
        kernels.rotate_and_store(qkv, rotation, slots, cache)
        attended = attention(qkv, cache, plan, self._head_dim**-0.5)
        normed = kernels.add_rms_norm(hidden, layer.out(attended), layer.mlp_norm, self._epsilon)
        return layer.down(kernels.silu_product(layer.gate_up(normed)))

    def _logits(self, hidden: Tensor, delta: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        wanted: list[int] = []
        end = 0
        for chunk in chunks:
            end += chunk.num_tokens
            wanted += range(end - chunk.num_logits, end)
        rows = self._padded(wanted)
        normed = self._kernels.add_rms_norm(hidden[rows], delta[rows], self._norm, self._epsilon)
        return self._head(normed)[: len(wanted)].float()
