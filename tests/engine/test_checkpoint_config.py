"""Each fault of config.json and generation_config.json is one line that names the file, the field and what it takes."""

import json
import logging
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Phi3Config

from phi3_serve.engine.checkpoint_config import _FIELDS, check_generation_config, read_config
from phi3_serve.engine.loader import load
from phi3_serve.errors import CheckpointError
from phi3_serve.parameter_defaults import LIBRARY_DEFAULTS
from phi3_serve.parameters import GenerationParameters
from tests.random_checkpoint import Shape, make
from training.modules import load_with_modules

REAL_CONFIGS = Path(__file__).parents[1] / "data" / "configs"
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
MINI = json.loads((REAL_CONFIGS / "phi-3-mini-128k-instruct.config.json").read_text())


def written(directory: Path, name: str, content: object) -> Path:
    (directory / name).write_text(json.dumps(content))
    return directory / name


def config_fault(directory: Path, **changes: Any) -> str:
    path = written(directory, "config.json", {**MINI, **changes})
    with pytest.raises(CheckpointError) as caught:
        read_config(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["phi-3-mini-128k-instruct", "phi-3-medium-128k-instruct"])
def test_su_is_longrope(name: str, tmp_path: Path) -> None:
    """The first revisions of the 128k variants call it su."""
    path = REAL_CONFIGS / f"{name}.config.json"
    given = json.loads(path.read_text())
    assert given["rope_scaling"]["type"] == "su"
    config: Any = Phi3Config.from_dict(read_config(path))
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["original_max_position_embeddings"] == 4096
    assert config.rope_parameters["long_factor"] == given["rope_scaling"]["long_factor"]
    del given["rope_scaling"]["type"]
    given["rope_scaling"]["rope_type"] = "longrope"
    renamed = written(tmp_path, "config.json", given)
    assert config.to_dict() == Phi3Config.from_pretrained(renamed).to_dict()


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_su_is_served_under_every_name_of_the_field(tmp_path: Path, name: str, key: str) -> None:
    make(tmp_path, Shape(context_length=64, long_context_length=256))
    before = load_with_modules(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    del rope["rope_type"]
    path.write_text(json.dumps({**config, name: {**rope, key: "su"}}))
    after = load_with_modules(tmp_path)
    prompt = torch.arange(3, 83)[None]  # beyond the 64 tokens of the short factors
    with torch.inference_mode():
        assert torch.equal(before.model(prompt).logits, after.model(prompt).logits)


def test_defaults_are_those_of_phi3config() -> None:
    theirs = {field.name: field.default for field in fields(Phi3Config)}
    ours = {name: field.default for name, field in _FIELDS.items() if field.default is not None}
    assert ours == {name: theirs[name] for name in ours}
    is_optional = {name for name, default in theirs.items() if name in _FIELDS and name not in ours}
    assert is_optional == {
        *("num_key_value_heads", "sliding_window", "dtype", "bos_token_id", "eos_token_id", "pad_token_id")
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vocab_size": "32064"}, "vocab_size is '32064'; it must be a positive integer"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be a positive integer"),
        ({"hidden_size": None}, "hidden_size is None; it must be a positive integer"),
        ({"intermediate_size": 8192.0}, "intermediate_size is 8192.0; it must be a positive integer"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1; it must be a positive integer"),
        ({"num_attention_heads": True}, "num_attention_heads is True; it must be a positive integer"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7; it must divide hidden_size, which is 3072"),
        ({"num_key_value_heads": [32]}, "num_key_value_heads is [32]; it must be a positive integer"),
        ({"num_key_value_heads": 5}, "num_key_value_heads is 5; it must divide num_attention_heads, which is 32"),
        ({"head_dim": "96"}, "head_dim is '96'; it must be a positive integer"),
        ({"max_position_embeddings": "128k"}, "max_position_embeddings is '128k'; it must be a positive integer"),
        (
            {"original_max_position_embeddings": {}},
            "original_max_position_embeddings is {}; it must be a positive integer",
        ),
        ({"sliding_window": "2047"}, "sliding_window is '2047'; it must be a positive integer"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; it must be 'silu'"),
        ({"rms_norm_eps": "1e-05"}, "rms_norm_eps is '1e-05'; it must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a positive number"),
        ({"rope_theta": 0}, "rope_theta is 0; it must be a positive number"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; it must be a number above 0 and at most 1"),
        ({"initializer_range": "x"}, "initializer_range is 'x'; it must be a positive number"),
        ({"attention_dropout": 2}, "attention_dropout is 2; it must be a number from 0 to 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be true or false"),
        ({"use_cache": 1}, "use_cache is 1; it must be true or false"),
        ({"bos_token_id": [1]}, "bos_token_id is [1]; it must be an integer"),
        ({"eos_token_id": "<|end|>"}, "eos_token_id is '<|end|>'; it must be an integer or a list of integers"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id is [1, '2']; it must be an integer or a list of integers"),
        ({"pad_token_id": 1.5}, "pad_token_id is 1.5; it must be an integer"),
        ({"torch_dtype": "fp16"}, "torch_dtype is 'fp16'; it must be one of float32, bfloat16, float16"),
        ({"dtype": ["float32"]}, "dtype is ['float32']; it must be one of float32, bfloat16, float16"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number at least 0"),
        ({"model_type": None}, "model_type is None; only 'phi3' is served"),
        (
            {"architectures": "Phi3ForCausalLM"},
            "architectures is 'Phi3ForCausalLM'; only ['Phi3ForCausalLM'] is served",
        ),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    assert config_fault(tmp_path, **changes) == text


ONLY_LONGROPE = "only 'default', 'longrope' and 'su', the older name of longrope, are served"
FACTORS = "it must be a list of 48 positive numbers, one for each pair of rotary dimensions"


@pytest.mark.parametrize(
    ("rope", "text"),
    [
        ("longrope", "rope_scaling is 'longrope'; it must be an object"),
        ({"type": "yarn", "factor": 4.0}, f"rope_scaling.type is 'yarn'; {ONLY_LONGROPE}"),
        ({"rope_type": "linear", "factor": 2.0}, f"rope_scaling.rope_type is 'linear'; {ONLY_LONGROPE}"),
        ({"type": "dynamic", "factor": 2.0}, f"rope_scaling.type is 'dynamic'; {ONLY_LONGROPE}"),
        ({"type": ["su"]}, f"rope_scaling.type is ['su']; {ONLY_LONGROPE}"),
        ({"type": "su"}, f"rope_scaling.short_factor is None; {FACTORS}"),
        (
            {**LONGROPE, "short_factor": [1.0] * 47},
            f"rope_scaling.short_factor is [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, ...]; {FACTORS}",
        ),
        ({**LONGROPE, "long_factor": [0] * 48}, f"rope_scaling.long_factor is [0, 0, 0, 0, 0, 0, ...]; {FACTORS}"),
        ({**LONGROPE, "rope_theta": "x"}, "rope_scaling.rope_theta is 'x'; it must be a positive number"),
        (
            {**LONGROPE, "partial_rotary_factor": 0},
            "rope_scaling.partial_rotary_factor is 0; it must be a number above 0 and at most 1",
        ),
    ],
)
def test_a_wrong_rope_scaling_is_named(tmp_path: Path, rope: object, text: str) -> None:
    assert config_fault(tmp_path, rope_scaling=rope) == text
    in_the_new_field = {"rope_scaling": None, "rope_parameters": rope}
    assert config_fault(tmp_path, **in_the_new_field) == text.replace("rope_scaling", "rope_parameters", 1)


def test_part_of_the_dimensions_may_rotate(tmp_path: Path) -> None:
    """As in Phi-4-mini: 48 pairs, of which three quarters rotate."""
    rope = {"type": "longrope", "short_factor": [1.0] * 36, "long_factor": [2.0] * 36}
    path = written(tmp_path, "config.json", {**MINI, "rope_scaling": rope, "partial_rotary_factor": 0.75})
    config: Any = Phi3Config.from_dict(read_config(path))
    assert config.rope_parameters["partial_rotary_factor"] == 0.75


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"quantization_config": {"quant_method": "fp8", "bits": 8}},
            "quantization_config",
        ),
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "quantization_config"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, "quantization_config"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantization_config"),
        ({"compression_config": {"quant_method": "sparseml"}}, "compression_config"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization"),
        ({"quantization_config": True}, "quantization_config"),
    ],
)
def test_quantised_weights_are_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    given = changes[text]
    method = given.get("quant_method") if isinstance(given, dict) else None
    assert config_fault(tmp_path, **changes) == (
        f"{text} says that the weights are quantised ({method or 'no quant_method is given'}); "
        "of quantised weights, only pack-quantized and float-quantized of compressed-tensors, gptq and awq are read"
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"eos_token_id": "<|end|>"}, "eos_token_id is '<|end|>'; it must be an integer or a list of integers"),
        ({"temperature": "0.7"}, "temperature is '0.7'; it must be a number at least 0"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be a number at least 0 and at most 1"),
        ({"do_sample": "yes"}, "do_sample is 'yes'; it must be true or false"),
        ({"top_k": 50.0}, "top_k is 50.0; it must be a whole number at least 0"),
        ({"num_beams": 1000}, "num_beams is 1000; it must be a whole number at least 1 and at most 64"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'; it must be true or false or 'never'"),
        (
            {"suppress_tokens": [1, -1]},
            "suppress_tokens is [1, -1]; it must be a list of [a whole number at least 0] (0 to 1024)",
        ),
        (
            {"stop_strings": [""]},
            "stop_strings is ['']; it must be text (1 to 256) or a list of [text (1 to 256)] (0 to 256)",
        ),
        (
            {"exponential_decay_length_penalty": [5]},
            "exponential_decay_length_penalty is [5]; it must be [a whole number at least 0, a number above 0]",
        ),
    ],
)
def test_a_wrong_generate_parameter_of_the_checkpoint_is_named(
    tmp_path: Path, given: dict[str, Any], text: str
) -> None:
    path = written(tmp_path, "generation_config.json", given)
    with pytest.raises(CheckpointError) as caught:
        check_generation_config(path)
    assert caught.value.message == f"{path}: {text}"


def test_right_generate_parameters_pass(tmp_path: Path) -> None:
    given = {
        **LIBRARY_DEFAULTS.given(),
        "temperature": 1,
        "top_p": None,
        "stop_strings": ["x"],
        "eos_token_id": [32000, -1],
        "pad_token_id": -1,
        "bad_words_ids": [[1, 2]],
        "sequence_bias": [[[1], 2.0]],
        "exponential_decay_length_penalty": [5, 1.1],
        "transformers_version": "5.0",
    }
    check_generation_config(written(tmp_path, "generation_config.json", given))


def test_a_fault_of_the_config_is_not_told_as_one_of_the_tokenizer(checkpoint: Path, tmp_path: Path) -> None:
    """A fault that only transformers finds: a field that it cannot set."""
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    written(copy, "config.json", {**config, "use_return_dict": True})
    with pytest.raises(CheckpointError) as caught:
        load("mine", str(copy), None, device="cpu", dtype="auto")
    assert caught.value.message.startswith(f"{copy}/config.json: ")
    assert "use_return_dict" in caught.value.message
    assert "\n" not in caught.value.message


def test_special_tokens_outside_the_vocabulary_are_dropped(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    written(copy, "generation_config.json", {"eos_token_id": [-1, 650], "pad_token_id": -1, "bos_token_id": 1})
    with caplog.at_level(logging.WARNING, "phi3_serve"):
        loaded = load("mine", str(copy), None, device="cpu", dtype="auto")
    assert loaded.defaults == GenerationParameters(eos_token_id=[650], bos_token_id=1)
    assert not [record for record in caplog.records if record.name == "phi3_serve"]
