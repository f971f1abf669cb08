"""GGUF files of a named shape with random weights, for llama.cpp. They have no vocabulary, so only token ids go in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

_EMBEDDING = "token_embd.weight"


def write_random(path: Path, config: Any, seed: int = 0) -> None:
    """Write a Phi-3 model of ``config`` in float16, with weights drawn from ``seed``, one tensor after another."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.PHI3])
    _add_parameters(writer, config)
    shapes = _shapes(config)
    for name, shape in shapes.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    draw = torch.Generator().manual_seed(seed)
    for shape in shapes.values():
        is_norm = len(shape) == 1
        weight = torch.ones(shape) if is_norm else torch.randn(shape, generator=draw).mul_(0.02).half()
        writer.write_tensor_data(weight.numpy())
    writer.close()


def bytes_of_step(path: Path) -> int:
    """Bytes of the weights in the file at ``path`` that a step reads: all but the embedding."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors if tensor.name != _EMBEDDING)


def _add_parameters(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_rope_scaling_orig_ctx_len(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)


def _shapes(config: Any) -> Mapping[str, tuple[int, ...]]:
    """Each tensor, [out, in], as ``conversion/phi.py`` of llama.cpp names it."""
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    of_qkv = head_dim * (config.num_attention_heads + 2 * config.num_key_value_heads)
    shapes: dict[str, tuple[int, ...]] = {_EMBEDDING: (config.vocab_size, width)}
    for layer in range(config.num_hidden_layers):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (width,),
            f"blk.{layer}.attn_qkv.weight": (of_qkv, width),
            f"blk.{layer}.attn_output.weight": (width, width),
            f"blk.{layer}.ffn_norm.weight": (width,),
            f"blk.{layer}.ffn_up.weight": (2 * config.intermediate_size, width),
            f"blk.{layer}.ffn_down.weight": (width, config.intermediate_size),
        }
    return shapes | {"output_norm.weight": (width,), "output.weight": (config.vocab_size, width)}
