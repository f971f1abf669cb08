import json
from pathlib import Path

import pytest

from phi3_serve import catalogue


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("phi-3-mini-4k-instruct", "phi-3-mini-4k-instruct"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi-3-mini-4k-instruct"),
        ("phi3-mini-4k", "phi-3-mini-4k-instruct"),
        ("Phi-3-Medium-128k-Instruct", "phi-3-medium-128k-instruct"),
        ("phi_3_medium_4k_instruct", "phi-3-medium-4k-instruct"),
        ("microsoft/Phi-3.5-mini-instruct", "phi-3.5-mini-instruct"),
        ("phi3.5-mini", "phi-3.5-mini-instruct"),
        ("tiny", None),
        ("phi-3-mini", None),
        ("", None),
    ],
)
def test_accepted_spellings(spelling: str, name: str | None) -> None:
    assert catalogue.find(spelling) == name


def test_only_declared_models_are_found_and_own_names_are_exact() -> None:
    assert catalogue.find("phi3-mini-4k", ["phi-3-tiny"]) is None
    assert catalogue.find("My-Model", ["My-Model"]) == "My-Model"
    assert catalogue.find("my-model", ["My-Model"]) is None


def test_figures_of_the_real_variants() -> None:
    """research/engine.md section 1, from the configs: 384 KiB and 200 KiB of KV per token, W = 7.6 and 27.9 GB."""
    mini, medium = catalogue.variant("phi-3-mini-128k-instruct"), catalogue.variant("phi-3-medium-4k-instruct")
    assert mini is not None
    assert medium is not None
    assert mini.kv_bytes_per_token() == 393_216
    assert medium.kv_bytes_per_token() == 204_800
    assert (mini.kv_bytes_per_token("int8"), medium.kv_bytes_per_token("int8")) == (204_800, 105_600)
    assert mini.weight_bytes() == 7_642_159_104
    assert mini.memory_needed() > mini.weight_bytes() + 4096 * mini.kv_bytes_per_token()


def test_every_real_variant_is_pinned_to_a_commit() -> None:
    for variant in catalogue.VARIANTS:
        if variant.needs_gpu:
            assert variant.revision is not None
            assert len(variant.revision) == 40


def test_the_entry_of_phi_3_tiny_is_the_embedded_checkpoint() -> None:
    tiny = catalogue.variant("phi-3-tiny")
    assert tiny is not None
    config = json.loads((catalogue.EMBEDDED_TINY / "config.json").read_text())
    weights = (catalogue.EMBEDDED_TINY / "model.safetensors").stat().st_size
    assert config["max_position_embeddings"] == tiny.context_length
    assert config["num_hidden_layers"] == tiny.num_layers
    assert config["num_key_value_heads"] == tiny.num_kv_heads
    assert config["hidden_size"] // config["num_attention_heads"] == tiny.head_dim
    assert 0 < weights - tiny.weight_bytes("bfloat16") < 8192  # the header


@pytest.mark.parametrize(
    ("source", "local"),
    [("microsoft/Phi-3-mini-4k-instruct", False), ("/models/x", True), ("./x", True), ("x", True), ("a/b/c", True)],
)
def test_what_counts_as_a_directory(source: str, local: bool) -> None:
    assert catalogue.is_local(source) is local


def test_a_directory_that_looks_like_a_hub_id_is_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert catalogue.is_local("owner/name")
