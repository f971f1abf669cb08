"""The linear layers of a model that adapters change, by the numbers that the forward pass gives them."""

from typing import Any

from phi3_serve.engine.weights import head_dim

LAYERS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
QKV, OUT, GATE_UP, DOWN = range(len(LAYERS))
HEAD = "lm_head"


def place(layer: int, linear: int) -> int:
    """The number of a linear layer: ``linear`` is QKV, OUT, GATE_UP or DOWN of the decoder layer ``layer``."""
    return layer * len(LAYERS) + linear


def head(config: Any) -> int:
    """The number of the head."""
    return int(config.num_hidden_layers) * len(LAYERS)


def modules(config: Any) -> list[str]:
    """The paths of all linear layers in ``Phi3ForCausalLM``, by their numbers. The head is the last one."""
    layers = [f"model.layers.{layer}.{name}" for layer in range(config.num_hidden_layers) for name in LAYERS]
    return [*layers, HEAD]


def shapes(config: Any) -> list[tuple[int, int]]:
    """The sizes (outputs, inputs) of the weights of ``modules``."""
    width, hidden = config.num_attention_heads * head_dim(config), config.hidden_size
    of_layer = [
        (width + 2 * config.num_key_value_heads * head_dim(config), hidden),
        (hidden, width),
        (2 * config.intermediate_size, hidden),
        (hidden, config.intermediate_size),
    ]
    return [*of_layer * config.num_hidden_layers, (config.vocab_size, hidden)]
