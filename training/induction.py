"""Initial weights that can copy: the first two layers start with an induction circuit instead of noise.

A model that copies a number or a word from the question needs two heads that work together (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework; Olsson et al. 2022, https://arxiv.org/abs/2209.11895). The first head
copies the previous token to each position. The second head finds an earlier position whose previous token is the
current token, and copies the token there. From random weights these heads form late, after many more dialogues than
two cores can process in an hour. Here they are written by hand, and training may change them.

The residual stream at the start holds the token (``CONTENT``), the previous token (``BEFORE``), the token to copy
(``COPIED``), and a constant.
"""

from typing import Any

import torch
from torch import Tensor

CONTENT = range(96)
BEFORE = range(96, 128)
COPIED = range(128, 224)
CONSTANT = 224
_CONSTANT = 3.0
_NOISE = 0.02
# Sharpness of the two attention patterns: a match outweighs a few dozen other positions.
_SHARP_BEFORE, _SHARP_MATCH = 7.0, 2.0
_COPY_SCORE = 8.0  # logit of the copied token


@torch.no_grad()
def write_induction_circuit(model: Any) -> None:
    """Write the circuit into the weights of the untrained ``model``."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    embeddings.mul_(0.5 / _NOISE)  # so that the other dimensions count beside the content
    content = torch.randn(config.vocab_size, len(CONTENT)).sign()
    embeddings[:, list(CONTENT)] = content
    embeddings[:, [*BEFORE, *COPIED]] = 0.0
    embeddings[:, CONSTANT] = _CONSTANT
    head[:, list(COPIED)] = content * _COPY_SCORE / len(CONTENT)
    rms = float(embeddings.square().mean(-1).sqrt().mean())

    first, second = (layer.self_attn for layer in model.model.layers[:2])
    frequencies = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, head_dim, 2) / head_dim)
    _look_one_back(first, frequencies, rms)
    _write(first, head=0, reads=range(head_dim), writes=BEFORE, gain=rms)
    for number in range(len(CONTENT) // head_dim):
        _look_for_the_same(second, number, frequencies)
        span = slice(number * head_dim, (number + 1) * head_dim)
        _write(second, head=number, reads=CONTENT[span], writes=COPIED[span], gain=rms)


def _look_one_back(attention: Any, frequencies: Tensor, rms: float) -> None:
    """Head 0 attends to the previous position: queries and keys are constants whose rotations match at distance one."""
    query, key, _ = _rows(attention, head=0)
    half = len(frequencies)
    used = range(4)  # the fast rotations distinguish neighbours
    query[:], key[:] = 0.0, 0.0
    scale = _SHARP_BEFORE * rms / _CONSTANT
    for i in used:
        query[i, CONSTANT] = torch.cos(-frequencies[i]) * scale
        query[half + i, CONSTANT] = torch.sin(-frequencies[i]) * scale
        key[i, CONSTANT] = scale


def _look_for_the_same(attention: Any, head: int, frequencies: Tensor) -> None:
    """The query is the current token, the key the previous one. Slow rotations match at any distance."""
    query, key, _ = _rows(attention, head=head)
    half = len(frequencies)
    query[:], key[:] = 0.0, 0.0
    slow = [i for i in range(half) if frequencies[i] < 0.02]
    for at, i in enumerate([*slow, *(half + i for i in slow)]):
        query[i, CONTENT[at]] = _SHARP_MATCH
        key[i, BEFORE[at]] = _SHARP_MATCH


def _write(attention: Any, *, head: int, reads: range, writes: range, gain: float) -> None:
    """Make the head copy the dimensions ``reads`` of the residual stream to ``writes``."""
    _, _, value = _rows(attention, head=head)
    output = attention.o_proj.weight[:, head * len(value) : (head + 1) * len(value)]
    value[:], output[:] = 0.0, 0.0
    for at, (source, target) in enumerate(zip(reads, writes, strict=True)):
        value[at, source] = 1.0
        output[target, at] = gain


def _rows(attention: Any, *, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of ``qkv_proj`` for the query, key and value of ``head``: views, each [head_dim, hidden_size]."""
    weight, size = attention.qkv_proj.weight, attention.head_dim
    width = attention.config.num_attention_heads * size
    return tuple(weight[part * width + head * size :][:size] for part in range(3))
