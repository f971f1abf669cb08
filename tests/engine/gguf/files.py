"""GGUF files of checkpoint directories, written as Phi3MiniModel in the converter of llama.cpp (conversion/phi.py) does.

Weights are quantised by the library ``gguf``. It does not quantise to the types whose names end in K, so tensors of these
types have random blocks, and the weights that the library makes of them are the model's.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf import TokenType
from safetensors.torch import load_file

SIZES = gguf.GGML_QUANT_SIZES
K_TYPES = (Type.Q4_K, Type.Q5_K, Type.Q6_K)
Array = np.ndarray[Any, np.dtype[Any]]
BLOCK = 256  # inputs of a block of the types whose names end in K


def q4_k_m(name: str) -> Type:
    """As in Phi-3-mini-4k-instruct-q4.gguf; every other layer has Q6_K."""
    if "attn_qkv" in name:
        return Type.Q5_K
    if name == "output.weight" or "blk.0.ffn_down" in name:
        return Type.Q6_K
    return Type.Q4_K


def q4_0(name: str) -> Type:
    """As llama.cpp quantises to Q4_0."""
    return Type.Q6_K if name == "output.weight" else Type.Q4_0


def all_are(kind: Type) -> Callable[[str], Type]:
    """Every matrix has the type ``kind``."""
    return lambda name: kind


MIXTURES = {"q8_0": all_are(Type.Q8_0), "q4_0": q4_0, "q4_k_m": q4_k_m}


def blocks_of(kind: Type, rows: int, inputs: int, *, seed: int, size: float = 0.02) -> Array:
    """Random bytes as blocks of ``kind``, with scales that make weights of about ``size``."""
    of_block, num_bytes = SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, inputs // of_block, num_bytes), dtype=np.uint8)
    # of the scale, and of the minimum, where they are in a block
    places = {Type.Q4_K: ((0, 32 * 8), (2, 32)), Type.Q5_K: ((0, 32 * 16), (2, 32)), Type.Q6_K: ((208, 64 * 16),)}
    for place, steps in places.get(kind, ((0, 2 ** (3 if kind == Type.Q4_0 else 7)),)):
        scales = random.uniform(0.5, 1.5, blocks.shape[:2]) * size / steps * (1 if kind in K_TYPES else 2)
        blocks[:, :, place : place + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def write(
    path: Path,
    directory: Path,
    type_of: Callable[[str], Type] = lambda name: Type.F16,
    change: Mapping[str, Any] | None = None,
    *,
    size: float = 0.02,
) -> dict[str, torch.Tensor]:
    """Write the checkpoint in ``directory``; returns the weights that the file means, by the names in Phi3ForCausalLM.

    ``type_of``: that of a matrix, by its name in the file. ``change``: metadata; None: there is none. ``size``: of
    random weights, about.
    """
    config = json.loads((directory / "config.json").read_text())
    tokenizer, tokenizer_config = (
        json.loads((directory / f"{n}.json").read_text()) for n in ("tokenizer", "tokenizer_config")
    )
    writer = _Writer(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.PHI3], change or {})
    add_parameters(writer, config)
    add_vocabulary(writer, tokenizer, tokenizer_config, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, config["num_hidden_layers"])
    meant = {}
    for number, (parameter, weight) in enumerate(load_file(directory / "model.safetensors").items()):
        name = f"{names.get_name(parameter.removesuffix('.weight'))}.weight"
        data, kind = weight.float().numpy(), Type.F32 if weight.ndim == 1 else type_of(name)
        stored = blocks_of(kind, *data.shape, seed=number, size=size) if kind in K_TYPES else gguf.quantize(data, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        meant[parameter] = torch.from_numpy(np.array(gguf.dequantize(stored, kind), np.float32))
    add_factors(writer, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


class _Writer(gguf.GGUFWriter):
    """A writer that changes metadata on the way."""

    def __init__(self, path: Path, architecture: str, change: Mapping[str, Any]) -> None:
        self._change = dict(change)
        super().__init__(path, architecture)
        for key, value in change.items():
            if value is not None and key != "general.architecture":
                kind = {str: gguf.GGUFValueType.STRING, bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, list: gguf.GGUFValueType.ARRAY}[type(value)]  # fmt: skip
                super().add_key_value(key, value, kind)

    def add_key_value(self, key: str, val: Any, vtype: Any, sub_type: Any = None) -> None:
        if key == "general.architecture":
            super().add_key_value(key, self._change.get(key, val), vtype, sub_type)
        elif key not in self._change:
            super().add_key_value(key, val, vtype, sub_type)


def add_parameters(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """``set_gguf_parameters``."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    trained = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    share = config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(trained)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(int(share * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta") or 10000.0)
    writer.add_file_type(1)
    writer.add_sliding_window(config.get("sliding_window") or 0)
    if rope.get("long_factor"):
        scale = config["max_position_embeddings"] / trained
        factor = math.sqrt(1 + math.log(scale) / math.log(trained)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(factor)


def add_factors(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """``generate_extra_tensors``."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    for kind in ("long", "short"):
        if rope.get(f"{kind}_factor"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: Mapping[str, Any], config: Mapping[str, Any], vocab_size: int
) -> None:
    """``set_vocab``.

    tokenizer.json does not have the scores of pieces. It lists merges from the highest score of what they make on.
    """
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    scores, kinds = [-10000.0] * vocab_size, [TokenType.UNUSED] * vocab_size
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"]]
    made = list(dict.fromkeys("".join(merge) for merge in merges))
    score_of = {piece: -float(number) for number, piece in enumerate(made)}
    for token, i in tokenizer["model"]["vocab"].items():
        is_byte = len(token) == 6 and token.startswith("<0x")
        kinds[i] = TokenType.UNKNOWN if token == "<unk>" else TokenType.CONTROL if token in ("<s>", "</s>") else TokenType.BYTE if is_byte else TokenType.NORMAL  # fmt: skip
        tokens[i], scores[i] = token, score_of.get(token, 0.0)
    for token in tokenizer["added_tokens"]:
        i = token["id"]
        tokens[i], scores[i] = token["content"], -1000.0
        kinds[i] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "unk", "pad"):  # SpecialVocab.add_to_gguf
        if (token := config.get(f"{name}_token")) is not None:
            getattr(writer, f"add_{name}_token_id")(tokens.index(token if isinstance(token, str) else token["content"]))
    writer.add_add_bos_token(bool(config.get("add_bos_token")))
    writer.add_add_eos_token(bool(config.get("add_eos_token")))
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])
