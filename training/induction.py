"""A start with the ability to copy: the first two layers begin with an induction circuit instead of noise.

A model that copies a number or a word from the question needs two heads that work together (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework; Olsson et al. 2022, https://arxiv.org/abs/2209.11895): one brings to
each position what stands before it, another looks for the position before which the present token stood and copies
what is there. Left to chance, they form late, after far more dialogues than two cores read in an hour. Written down
by hand they are there at once, and training is free to change them.

The residual stream at the start: what a token is (``CONTENT``), what the one before it is (``BEFORE``), what is to be
copied (``COPIED``), and a constant.
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
# Sharpness of the two attentions, chosen so that a match outweighs a few dozen other positions.
_SHARP_BEFORE, _SHARP_MATCH = 7.0, 2.0
_COPY_SCORE = 8.0  # of the copied token, in logits


@torch.no_grad()
def write_induction_circuit(model: Any) -> None:
    """Write the circuit into the untrained ``model``."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    embeddings, head = model.model.embed_tokens.weight, model.lm_head.weight
    embeddings.mul_(0.5 / _NOISE)  # so that the rest is heard beside the content
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
    """Head 0: queries and keys are constants whose rotations agree at a distance of one."""
    query, key, _ = _rows(attention, head=0)
    half = len(frequencies)
    used = range(4)  # the fast rotations tell neighbours apart
    query[:], key[:] = 0.0, 0.0
    scale = _SHARP_BEFORE * rms / _CONSTANT
    for i in used:
        query[i, CONSTANT] = torch.cos(-frequencies[i]) * scale
        query[half + i, CONSTANT] = torch.sin(-frequencies[i]) * scale
        key[i, CONSTANT] = scale


def _look_for_the_same(attention: Any, head: int, frequencies: Tensor) -> None:
    """The query is what the present token is, the key what stood before each; in slow rotations, blind to distance."""
    query, key, _ = _rows(attention, head=head)
    half = len(frequencies)
    query[:], key[:] = 0.0, 0.0
    slow = [i for i in range(half) if frequencies[i] < 0.02]
    for at, i in enumerate([*slow, *(half + i for i in slow)]):
        query[i, CONTENT[at]] = _SHARP_MATCH
        key[i, BEFORE[at]] = _SHARP_MATCH


def _write(attention: Any, *, head: int, reads: range, writes: range, gain: float) -> None:
    """The head's values are ``reads`` of the stream, and go to ``writes``."""
    _, _, value = _rows(attention, head=head)
    output = attention.o_proj.weight[:, head * len(value) : (head + 1) * len(value)]
    value[:], output[:] = 0.0, 0.0
    for at, (source, target) in enumerate(zip(reads, writes, strict=True)):
        value[at, source] = 1.0
        output[target, at] = gain


def _rows(attention: Any, *, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """The rows of ``qkv_proj`` that make the query, key and value of ``head``; views, each [head_dim, hidden]."""
    weight, size = attention.qkv_proj.weight, attention.head_dim
    width = attention.config.num_attention_heads * size
    return tuple(weight[part * width + head * size :][:size] for part in range(3))
