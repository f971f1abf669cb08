"""config.json and generation_config.json of a checkpoint, checked field by field before transformers reads them.

transformers reads them when it loads the tokenizer and the weights, so its errors name the wrong file. Plain Python.
"""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from phi3_serve.bounds import allows, in_words
from phi3_serve.engine.stored_quantization import read_quantization
from phi3_serve.errors import CheckpointError, CheckpointIncomplete
from phi3_serve.parameters import GenerationParameters

DTYPES = ("float32", "bfloat16", "float16")
ROPE_TYPES = ("default", "longrope")
LONGROPE_BEFORE_MAY_2024 = "su"  # in the first revisions of the 128k variants, and in fine-tunes of them

SPECIAL_TOKENS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)  # may be outside the vocabulary; the loader drops these

_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = 80  # characters


class _Field(NamedTuple):
    expected: str
    is_valid: Callable[[Any], bool]
    default: object = None  # Phi3Config's; None: the field may be null


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and 0 < value < math.inf


def _is_fraction(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and 0 <= value <= 1


def _is_size(value: Any) -> bool:
    return _is_int(value) and value >= 1


def _are_ids(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, list) and all(map(_is_int, value)))


_SIZE = "a positive integer"
_FIELDS: Mapping[str, _Field] = {
    "vocab_size": _Field(_SIZE, _is_size, 32_064),
    "hidden_size": _Field(_SIZE, _is_size, 3_072),
    "intermediate_size": _Field(_SIZE, _is_size, 8_192),
    "num_hidden_layers": _Field(_SIZE, _is_size, 32),
    "num_attention_heads": _Field(_SIZE, _is_size, 32),
    "num_key_value_heads": _Field(_SIZE, _is_size),
    "head_dim": _Field(_SIZE, _is_size),
    "max_position_embeddings": _Field(_SIZE, _is_size, 4_096),
    "original_max_position_embeddings": _Field(_SIZE, _is_size, 4_096),
    "sliding_window": _Field(_SIZE, _is_size),
    "hidden_act": _Field("'silu'", lambda value: value == "silu", "silu"),  # the decoder computes no other
    "rms_norm_eps": _Field("a positive number", _is_positive, 1e-5),
    "rope_theta": _Field("a positive number", _is_positive),
    "partial_rotary_factor": _Field("a number above 0 and at most 1", lambda v: _is_positive(v) and v <= 1),
    "initializer_range": _Field("a positive number", _is_positive, 0.02),
    "attention_dropout": _Field("a number from 0 to 1", _is_fraction, 0.0),
    "embd_pdrop": _Field("a number from 0 to 1", _is_fraction, 0.0),
    "resid_pdrop": _Field("a number from 0 to 1", _is_fraction, 0.0),
    "tie_word_embeddings": _Field("true or false", lambda value: isinstance(value, bool), False),
    "use_cache": _Field("true or false", lambda value: isinstance(value, bool), True),
    "bos_token_id": _Field("an integer", _is_int),
    "eos_token_id": _Field("an integer or a list of integers", _are_ids),
    "pad_token_id": _Field("an integer", _is_int),
    "dtype": _Field(f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES),
    "torch_dtype": _Field(f"one of {', '.join(DTYPES)}", lambda value: value in DTYPES),
}


def read_json(path: Path, max_bytes: float = math.inf) -> dict[str, Any]:
    """The JSON object in a file of at most ``max_bytes``.

    Raises:
        CheckpointIncomplete: the file is missing or cannot be read.
        CheckpointError: it holds something else, or is larger.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise CheckpointError(f"{path}: has {size} bytes; allowed: at most {max_bytes}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointIncomplete(f"{path}: file is missing") from None
    except OSError as error:
        raise CheckpointIncomplete(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """The fields of config.json, with Phi3Config's defaults for those that are missing.

    The RoPE type "su" becomes "longrope", its name in transformers 5.

    Raises:
        CheckpointError: a field cannot be served.
    """
    config = read_json(path)
    try:
        read_quantization(config)
        check_config(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from None
    return config


def check_config(config: dict[str, Any]) -> None:
    """Check ``config``, which has the fields of config.json, and add Phi3Config's defaults.

    Raises:
        CheckpointError: a field cannot be served. The message begins with the field.
    """
    _check_architecture(config)
    for name, field in _FIELDS.items():
        if field.default is not None:
            config.setdefault(name, field.default)
        _check_field(config, name, name)
    _check_heads(config)
    _check_generation_parameters(config)
    _read_rope(config)


def check_generation_config(path: Path) -> None:
    """Check the generate parameters in generation_config.json.

    Raises:
        CheckpointError: a parameter is not of its type or not in its range.
    """
    config = read_json(path)
    try:
        for name in SPECIAL_TOKENS:
            _check_field(config, name, name)
        _check_generation_parameters(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from None


def _check_generation_parameters(config: Mapping[str, Any]) -> None:
    """Check the generate parameters. Before generation_config.json existed, they were in config.json."""
    for name, annotation in get_type_hints(GenerationParameters, include_extras=True).items():
        value = config.get(name)
        if name not in SPECIAL_TOKENS and value is not None and not allows(annotation, value):
            raise CheckpointError(f"{name} is {_SHORTENED.repr(value)}; it must be {in_words(annotation)}")


def _check_field(of: Mapping[str, Any], name: str, called: str) -> None:
    value, field = of.get(name), _FIELDS[name]
    if not (value is None and field.default is None) and not field.is_valid(value):
        raise CheckpointError(f"{called} is {_SHORTENED.repr(value)}; it must be {field.expected}")


def _check_architecture(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type != "phi3":
        raise CheckpointError(f"model_type is {_SHORTENED.repr(model_type)}; only 'phi3' is served")
    architectures = config.get("architectures") or ["Phi3ForCausalLM"]
    if architectures != ["Phi3ForCausalLM"]:
        raise CheckpointError(f"architectures is {_SHORTENED.repr(architectures)}; only ['Phi3ForCausalLM'] is served")


def _check_heads(config: dict[str, Any]) -> None:
    hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
    if hidden_size % num_heads:
        raise CheckpointError(f"num_attention_heads is {num_heads}; it must divide hidden_size, which is {hidden_size}")
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"num_key_value_heads is {num_kv_heads}; it must divide num_attention_heads, which is {num_heads}"
        )


def _read_rope(config: dict[str, Any]) -> None:
    """Check the RoPE scaling, and give it the names of transformers 5."""
    # rope_scaling before transformers 5, and then it wins
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name)
    if not given:
        return
    if not isinstance(given, dict):
        raise CheckpointError(f"{name} is {_SHORTENED.repr(given)}; it must be an object")
    rope = {key: value for key, value in given.items() if value is not None}
    key = "rope_type" if "rope_type" in rope else "type"
    rope_type = rope.pop(key, "default")
    if rope_type == LONGROPE_BEFORE_MAY_2024:
        rope_type = "longrope"
    if rope_type not in ROPE_TYPES:
        raise CheckpointError(
            f"{name}.{key} is {_SHORTENED.repr(rope_type)}; "
            "only 'default', 'longrope' and 'su', the older name of longrope, are served"
        )
    rope.pop("type", None)
    for number in ("rope_theta", "partial_rotary_factor"):
        _check_field(rope, number, f"{name}.{number}")
    if rope_type == "longrope":
        _check_factors(config, name, rope)
    del config[name]
    config["rope_scaling"] = {**rope, "rope_type": rope_type}


def _check_factors(config: Mapping[str, Any], name: str, rope: Mapping[str, Any]) -> None:
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    num_pairs = int(config["hidden_size"] // config["num_attention_heads"] * share) // 2
    for factors in ("short_factor", "long_factor"):
        value = rope.get(factors)
        if not isinstance(value, list) or len(value) != num_pairs or not all(map(_is_positive, value)):
            raise CheckpointError(
                f"{name}.{factors} is {_SHORTENED.repr(value)}; it must be a list of {num_pairs} positive numbers, "
                "one for each pair of rotary dimensions"
            )
