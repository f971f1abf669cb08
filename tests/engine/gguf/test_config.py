"""What is read from metadata, compared with the config.json that the metadata were written from."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from phi3_serve.engine.checkpoint_config import check_config
from phi3_serve.engine.gguf.config import check_attention_factor, generation_config, model_config
from phi3_serve.errors import CheckpointError
from tests.engine.gguf.files import add_parameters

CONFIGS = sorted((Path(__file__).parents[2] / "data" / "configs").glob("*.json"))
DESCRIBED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "original_max_position_embeddings", "sliding_window", "bos_token_id", "eos_token_id",
    "pad_token_id", "tie_word_embeddings", "model_type", "architectures", "hidden_act",
)  # fmt: skip


def metadata_of(config: dict[str, Any]) -> dict[str, Any]:
    """As the converter writes them, floats in float32."""
    writer = gguf.GGUFWriter(None, "phi3")
    add_parameters(writer, config)
    written = {key: field.value for key, field in writer.kv_data[0].items()}
    tokens = {
        f"tokenizer.ggml.{name}_token_id": config[f"{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"))
    }
    return {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in (written | tokens).items()}


def factors_of(config: dict[str, Any]) -> dict[str, list[float]]:
    rope = config.get("rope_scaling") or {}
    return {k: [float(np.float32(f)) for f in rope[k]] for k in ("long_factor", "short_factor") if k in rope}


def tensors_of(config: dict[str, Any]) -> dict[str, list[int]]:
    size = [config["vocab_size"], config["hidden_size"]]
    return {"model.embed_tokens.weight": size, "lm_head.weight": size}


@pytest.fixture(params=[128, 4])
def context(request: pytest.FixtureRequest) -> int:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def real(request: pytest.FixtureRequest, context: int) -> dict[str, Any]:
    """The config of a variant with 128k tokens, and what is different with 4k."""
    config: dict[str, Any] = json.loads(request.param.read_text())
    if context == 4:
        config |= {"max_position_embeddings": 4096, "sliding_window": 2047, "rope_scaling": None}
    return config


def test_the_real_models(real: dict[str, Any]) -> None:
    metadata = metadata_of(real)
    found = model_config(metadata, tensors_of(real), factors_of(real))
    check_config(found)
    check_attention_factor(metadata, found)
    check_config(real)
    assert {name: found.get(name) for name in DESCRIBED} == {name: real.get(name) for name in DESCRIBED}
    assert np.float32(found["rms_norm_eps"]) == np.float32(real["rms_norm_eps"])
    assert found["rope_theta"] == real["rope_theta"]
    expected = real.get("rope_scaling")
    assert (found.get("rope_scaling") is None) == (expected is None)
    if expected is not None:
        assert found["rope_scaling"]["rope_type"] == expected["rope_type"] == "longrope"
        for factors in ("long_factor", "short_factor"):
            np.testing.assert_array_equal(np.float32(found["rope_scaling"][factors]), np.float32(expected[factors]))


MINIMAL = {
    "general.architecture": "phi3",
    "phi3.embedding_length": 64,
    "phi3.feed_forward_length": 64,
    "phi3.block_count": 2,
    "phi3.attention.head_count": 2,
    "phi3.context_length": 4096,
    "phi3.attention.layer_norm_rms_epsilon": 1e-5,
}


def config_of(**changes: Any) -> dict[str, Any]:
    metadata = {k: v for k, v in {**MINIMAL, **{f"phi3.{k}": v for k, v in changes.items()}}.items() if v is not None}
    config = model_config(metadata, {"model.embed_tokens.weight": [128, 64]}, {})
    check_config(config)
    check_attention_factor(metadata, config)
    return config


def test_what_a_file_may_leave_out() -> None:
    config = config_of()
    assert config["tie_word_embeddings"]
    assert config["vocab_size"] == 128
    assert config["original_max_position_embeddings"] == 4096
    assert "rope_scaling" not in config
    assert "partial_rotary_factor" not in config


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, 2047),  # Microsoft's file of April 2024 does not have it
        ({"context_length": 131072}, None),
        ({"attention.sliding_window": 0}, None),
        ({"attention.sliding_window": 99}, 99),
    ],
)
def test_the_sliding_window(changes: dict[str, Any], window: int | None) -> None:
    assert config_of(**changes)["sliding_window"] == window


def test_a_part_of_a_head_may_rotate() -> None:
    assert config_of(**{"rope.dimension_count": 24})["partial_rotary_factor"] == 0.75


def test_answers_end_where_those_of_phi_3_do() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"]
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.padding_token_id": 4}
    for ends, expected in (({"eos": 4}, [4, 5, 6]), ({"eos": 2}, [2, 4, 5, 6]), ({"eot": 7}, [4, 5, 6, 7])):
        given = metadata | {f"tokenizer.ggml.{name}_token_id": i for name, i in ends.items()}
        found = generation_config(given)
        assert (found["bos_token_id"], found["pad_token_id"], found["eos_token_id"]) == (1, 4, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_length": None}, "phi3.embedding_length is None; it must be a positive number"),
        ({"block_count": "two"}, "phi3.block_count is 'two'; it must be a positive number"),
        ({"embedding_length": 65}, "num_attention_heads is 2; it must divide hidden_size, which is 65"),
        ({"attention.head_count_kv": 3}, "num_key_value_heads is 3; it must divide num_attention_heads, which is 2"),
        ({"attention.sliding_window": "a"}, "sliding_window is 'a'; it must be a positive integer"),
        ({"rope.scaling.attn_factor": 1.19}, "phi3.rope.scaling.attn_factor is 1.19; of RoPE scalings only longrope is served, with which it is 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        config_of(**changes)
    assert caught.value.message == message


def test_another_architecture_is_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        model_config({"general.architecture": "llama"}, {}, {})
    assert caught.value.message == "general.architecture is 'llama'; only 'phi3' is served"
