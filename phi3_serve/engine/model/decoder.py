"""The only forward pass: token ids in, logits of the next tokens out.

It takes the weights from ``Phi3Weights`` and computes in the order of modeling_phi3.py in transformers 5.23, with its
own implementation of each operation: linear layers in the fastest form for the machine, kernels between them, a paged
key-value cache, and no attention mask over the whole batch.
"""

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phi3_serve.engine.adapters import places
from phi3_serve.engine.kernels.contract import AdapterPlan, AttentionPlan, LayerKernels
from phi3_serve.engine.kernels.half_panels import HalfPanels, keeps_dtype
from phi3_serve.engine.kernels.kv_cache import KvCache, KvCacheDtype, stored_dtype
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.model.linear import Linear, Streamed, compute_dtype, fastest_form, paneled, plain
from phi3_serve.engine.model.rope import Rope
from phi3_serve.engine.quantization import QuantizedLinear
from phi3_serve.engine.weights import head_dim

MULTIPLY_ROW = "multiply_row"
MULTIPLY_PACKED = "multiply_packed"


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The tensors of one forward pass. Integers are int64, or int32 on a GPU."""

    token_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    uses_long_factors: Tensor  # [tokens], 0 or 1; see ``Rope.rotation``
    slots: Tensor  # the cache slot of each token; see ``LayerKernels.rotate_and_store``
    logit_rows: Tensor | None  # the tokens whose logits are wanted; None: all
    attention: AttentionPlan
    adapters: AdapterPlan | None = None  # of the tokens; None: no row has an adapter
    adapters_of_logits: AdapterPlan | None = None  # of the rows of the logits; None: no adapter changes the head


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weights of one decoder layer."""

    attention_norm: Tensor
    qkv: Linear
    out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """The weights of a model and its forward pass."""

    def __init__(self, model: Any, kernels: LayerKernels, *, releases_weights: bool = False) -> None:
        """Take the weights of ``model``, Phi3Weights or a Phi3ForCausalLM.

        ``releases_weights`` removes from ``model`` the weights that the decoder holds in another form.
        """
        self.config: Any = model.config
        self.device: torch.device = model.device
        self.dtype = compute_dtype(model.dtype, self.device)
        self.rope = Rope(model.config, self.device)
        self._kernels = kernels
        self._head_dim = head_dim(model.config)
        self._epsilon: float = model.config.rms_norm_eps
        self._embed: Callable[[Tensor], Tensor] = model.model.embed_tokens
        self._norm = model.model.norm.weight.detach().to(self.dtype)
        self.weight_dtype = self.dtype  # of the weights that are not rounded
        self.pads_rows = False  # whether a linear layer is faster at some numbers of rows than at others
        self.replaced: dict[str, str] = {}  # kernels of linear layers that torch replaces, and the reasons
        self._layers = self._take_layers(model, releases_weights)

    def _take_layers(self, model: Any, releases_weights: bool) -> list[_Layer]:
        form = _form(model, self.dtype)

        def take(module: nn.Linear | QuantizedLinear) -> Linear:
            if isinstance(module, QuantizedLinear):
                if module.problem is not None:
                    self.replaced[MULTIPLY_PACKED] = module.problem
                return module.packed.multiply
            weight = module.weight.detach()
            if _keeps_dtype(weight, self.dtype):
                self.weight_dtype = weight.dtype
                layer: Linear = HalfPanels(weight)
            else:
                self.pads_rows |= form is not paneled
                layer = form(weight.to(self.dtype))
            if releases_weights and module.weight is not model.model.embed_tokens.weight:
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
        if isinstance(form, Streamed) and form.problems:
            self.replaced[MULTIPLY_ROW] = "; ".join(f"{size}: {problem}" for size, problem in form.problems.items())
        return layers

    def run(self, inputs: StepInputs, cache: KvCache) -> Tensor:
        """The logits of ``inputs``, [logit rows, vocabulary], in the dtype of the model.

        The keys and values of the tokens are written to ``cache``.
        """
        rotation = self.rope.rotation(inputs.positions, inputs.uses_long_factors, self.dtype)
        hidden = self._embed(inputs.token_ids).to(self.dtype)
        delta = torch.zeros_like(hidden)  # the output of the previous layer, not yet added to hidden
        for number, of_layer in enumerate(cache.layers):
            delta = self._run_layer(number, hidden, delta, of_layer, rotation, inputs)
        if inputs.logit_rows is not None:
            hidden, delta = hidden[inputs.logit_rows], delta[inputs.logit_rows]
        normed = self._kernels.add_rms_norm(hidden, delta, self._norm, self._epsilon)
        return _run_linear(self._head, normed, places.head(self.config), inputs.adapters_of_logits)

    def _run_layer(
        self,
        number: int,
        hidden: Tensor,
        delta: Tensor,
        cache: KvCache,
        rotation: tuple[Tensor, Tensor],
        inputs: StepInputs,
    ) -> Tensor:
        """Add ``delta``, the output of the previous layer, to ``hidden`` in place; returns this layer's output."""
        kernels, layer = self._kernels, self._layers[number]

        def run(linear: Linear, x: Tensor, place: int) -> Tensor:
            return _run_linear(linear, x, places.place(number, place), inputs.adapters)

        normed = kernels.add_rms_norm(hidden, delta, layer.attention_norm, self._epsilon)
        qkv = run(layer.qkv, normed, places.QKV).view(hidden.shape[0], -1, self._head_dim)
        kernels.rotate_and_store(qkv, rotation, inputs.slots, cache)
        attended = inputs.attention.attend(qkv, cache, self._head_dim**-0.5)
        normed = kernels.add_rms_norm(hidden, run(layer.out, attended, places.OUT), layer.mlp_norm, self._epsilon)
        product = kernels.silu_product(run(layer.gate_up, normed, places.GATE_UP))
        return run(layer.down, product, places.DOWN)


def _run_linear(linear: Linear, x: Tensor, place: int, adapters: AdapterPlan | None) -> Tensor:
    output = linear(x)
    if adapters is not None:
        adapters.add(place, x, output)
    return output


def _form(model: Any, dtype: torch.dtype) -> Callable[[Tensor], Linear]:
    """The form of the linear layers that are not quantised and do not stay in 16 bits."""
    layers = model.model.layers
    for of_place in (
        [layer.mlp.gate_up_proj for layer in layers],
        [layer.mlp.down_proj for layer in layers],
        [layer.self_attn.qkv_proj for layer in layers],
        [layer.self_attn.o_proj for layer in layers],
    ):
        weights = [module.weight.detach() for module in of_place if not isinstance(module, QuantizedLinear)]
        if floats := [weight for weight in weights if not _keeps_dtype(weight, dtype)]:
            return fastest_form(floats, dtype)
    return plain


def _keeps_dtype(weight: Tensor, dtype: torch.dtype) -> bool:
    return weight.device.type == "cpu" and keeps_dtype(weight.dtype, dtype)


def sliding_window(config: Any) -> int | None:
    """How many keys a query sees, its own included; None if it sees the whole context."""
    window: int | None = config.sliding_window
    return None if window is None or window >= config.max_position_embeddings else window


def new_cache(decoder: Decoder, num_blocks: int, dtype: KvCacheDtype = "auto") -> KvCache:
    """An empty key-value cache for ``decoder``.

    Masked attention may read slots that were never written, so they must be numbers. On a CPU they take memory only
    when they are written: ``torch.zeros`` would write all of them.
    """
    config = decoder.config
    of_slots = (config.num_hidden_layers, 2 * config.num_key_value_heads, num_blocks * BLOCK_SIZE)
    values = _zeros((*of_slots, head_dim(config)), stored_dtype(dtype, decoder.dtype), decoder.device)
    return KvCache(values, None if dtype == "auto" else _zeros(of_slots, torch.float32, decoder.device))


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # zeros
    return torch.frombuffer(pages, dtype=dtype).view(shape)
