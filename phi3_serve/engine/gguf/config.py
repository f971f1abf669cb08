"""What the metadata of a GGUF file say of a Phi-3 model, as config.json and generation_config.json would. Plain Python.

``Phi3MiniModel`` in the converter of llama.cpp (conversion/phi.py) writes them.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from phi3_serve.errors import CheckpointError

ARCHITECTURE = "phi3"
FACTORS = {"long_factor": "rope_factors_long.weight", "short_factor": "rope_factors_short.weight"}  # tensors
# Those after which Phi-3's generation_config.json ends an answer; a file names one of them.
ENDS = ("<|endoftext|>", "<|assistant|>", "<|end|>")

_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL_FIELDS = {
    "num_key_value_heads": "attention.head_count_kv",
    "rope_theta": "rope.freq_base",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}
_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
# Files from before August 2024 do not name the window of the 4k variants; llama.cpp took it for such a context.
_CONTEXT_WITH_WINDOW, _WINDOW = 4096, 2047


def model_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, Sequence[int]], factors: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """The fields of config.json.

    Args:
        metadata: of the file.
        tensors: the shapes of its tensors, by the names of ``Phi3ForCausalLM``.
        factors: the content of those of ``FACTORS`` that the file has.

    Raises:
        CheckpointError: a field is missing, or the model is not Phi-3's. The message names the field.
    """
    if (architecture := metadata.get("general.architecture")) != ARCHITECTURE:
        raise CheckpointError(f"general.architecture is {reprlib.repr(architecture)}; only {ARCHITECTURE!r} is served")
    given = {name: _number(metadata, key) for name, key in _FIELDS.items()}
    given |= {n: value for n, key in _OPTIONAL_FIELDS.items() if (value := _optional(metadata, key)) is not None}
    given.setdefault("original_max_position_embeddings", given["max_position_embeddings"])
    embedding = tensors.get("model.embed_tokens.weight") or [len(metadata.get("tokenizer.ggml.tokens") or [])]
    config = {
        **given,
        **{name: token for name, key in _TOKENS.items() if (token := _token(metadata, key)) is not None},
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
        "vocab_size": embedding[0],
        "sliding_window": _sliding_window(metadata, given["max_position_embeddings"]),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    rotary, heads = _optional(metadata, "rope.dimension_count"), given["num_attention_heads"]
    if isinstance(rotary, int) and rotary * heads != given["hidden_size"]:
        config["partial_rotary_factor"] = rotary * heads / given["hidden_size"]
    if factors:
        config["rope_scaling"] = {"rope_type": "longrope", **factors}
    return config


def generation_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of generation_config.json."""
    config = {name: token for name, key in _TOKENS.items() if (token := _token(metadata, key)) is not None}
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    ends = {tokens.index(token) for token in ENDS if token in tokens}
    ends |= {end for key in ("eos_token_id", "eot_token_id") if (end := _token(metadata, key)) is not None}
    return {**config, "eos_token_id": sorted(ends)}


def _number(metadata: Mapping[str, Any], key: str) -> Any:
    value = _optional(metadata, key)
    if not isinstance(value, int | float) or not value > 0:
        raise CheckpointError(f"{ARCHITECTURE}.{key} is {reprlib.repr(value)}; it must be a positive number")
    return value


def _optional(metadata: Mapping[str, Any], key: str) -> Any:
    return metadata.get(f"{ARCHITECTURE}.{key}")


def _token(metadata: Mapping[str, Any], key: str) -> int | None:
    token: int | None = metadata.get(f"tokenizer.ggml.{key}")
    return token


def _sliding_window(metadata: Mapping[str, Any], context_length: object) -> int | None:
    window: int | None = _optional(metadata, "attention.sliding_window")
    if window is None and context_length == _CONTEXT_WITH_WINDOW:
        return _WINDOW
    return window or None  # 0: the model has none


def check_attention_factor(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse another factor than that of ``longrope``, which the converter writes too. ``yarn`` of Phi-3 has one.

    ``config`` is what ``model_config`` returned, and is checked.
    """
    given = _optional(metadata, "rope.scaling.attn_factor")
    longest, trained = config["max_position_embeddings"], config["original_max_position_embeddings"]
    expected = math.sqrt(1 + math.log(longest / trained) / math.log(trained)) if longest > trained > 1 else 1.0
    if given is not None and not math.isclose(given, expected, rel_tol=1e-5):
        raise CheckpointError(
            f"{ARCHITECTURE}.rope.scaling.attn_factor is {given:g}; of RoPE scalings only longrope is served, "
            f"with which it is {expected:g}"
        )
