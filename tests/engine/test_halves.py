"""Checkpoints in 16 bits on a CPU that computes in float32: what stays in 16 bits, and that the answers are exact."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kernels import half_panels
from phi3_serve.engine.kernels.half_panels import multiplies_halves
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from tests.engine.asking import Answer, request
from tests.engine.parity import store_as
from tests.oracle.adapters import save_adapters
from tests.oracle.reference import Oracle
from training.modules import load_with_modules

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SIZES = EngineSizes(num_blocks=64, token_budget=64, max_rows=16)

pytestmark = pytest.mark.skipif(not multiplies_halves(), reason="this processor has no wide vectors, or no compiler")


@pytest.fixture(params=HALVES)
def stored(request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint, stored in 16 bits."""
    directory = Path(shutil.copytree(checkpoint, tmp_path / request.param))
    store_as(directory, HALVES[request.param])
    return directory


def loaded_in_float32(directory: Path, **given: Any) -> LoadedModel:
    return load("tested", str(directory), None, device="cpu", dtype="auto", **given)


def test_matrices_keep_their_dtype(stored: Path) -> None:
    model = loaded_in_float32(stored).model
    assert model.dtype == torch.float32
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.dtype == HALVES[stored.name]
    assert model.model.norm.weight.dtype == torch.float32
    explicit = load("tested", str(stored), None, device="cpu", dtype="float32").model
    assert explicit.lm_head.weight.dtype == HALVES[stored.name]


def test_answers_are_those_of_transformers_in_float32(stored: Path) -> None:
    whole = load_with_modules(stored)
    assert whole.model.lm_head.weight.dtype == torch.float32
    engine = Engine(loaded_in_float32(stored), sizes=SIZES)
    assert engine.info.weight_bytes < 0.52 * sum(p.nbytes for p in whole.model.parameters())
    oracle = Oracle(whole)
    for number in range(6):
        made = request(whole, prompt=(5, 9, 300 + number), max_new_tokens=40, do_sample=number % 2 == 1, seed=number)
        theirs: Any = oracle.answer(made)
        assert Answer(engine, made).ids() == [sequence.token_ids for sequence in theirs.sequences]
    engine.close()


def test_without_the_compiled_kernels_matrices_become_float32(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = loaded_in_float32(stored).model
    monkeypatch.setattr(half_panels, "cpu_library", lambda: None)
    widened = loaded_in_float32(stored).model
    for path, module in widened.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.dtype == torch.float32
            assert torch.equal(module.weight, kept.get_submodule(path).weight.float())


def test_what_an_adapter_was_merged_into_is_float32(stored: Path, tmp_path: Path) -> None:
    """The other layers stay in 16 bits; both are in one forward pass."""
    whole = load_with_modules(stored)
    merged = save_adapters(whole, tmp_path, ["some_layers"]).merge_and_unload()
    ours = loaded_in_float32(stored, merged_adapters=[("one", str(tmp_path / "some_layers"), 1.0)])
    dtypes = {path: m.weight.dtype for path, m in ours.model.named_modules() if isinstance(m, nn.Linear)}
    widened = {path for path, dtype in dtypes.items() if dtype == torch.float32}
    assert widened == {"model.layers.1.self_attn.o_proj", "model.layers.1.mlp.down_proj"}
    engine = Engine(ours, sizes=SIZES)
    made = request(whole, prompt=(5, 9, 300), max_new_tokens=40, do_sample=False)
    theirs: Any = Oracle(replace(whole, model=merged)).answer(made)
    assert Answer(engine, made).ids() == [sequence.token_ids for sequence in theirs.sequences]
    engine.close()


@pytest.mark.parametrize("in_config", ["float32", "bfloat16", None])
def test_auto_counts_the_bytes_that_the_weights_will_have(
    stored: Path, in_config: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the dtype of the tensors, whatever config.json says, and float32 where an adapter may be merged."""
    config = json.loads((stored / "config.json").read_text())
    config.pop("torch_dtype", None)
    (stored / "config.json").write_text(json.dumps({**config, "dtype": in_config}))
    save_adapters(load_with_modules(stored), tmp_path, ["some_layers"])
    numbers = sum(parameter.numel() for parameter in load_with_modules(stored).model.parameters())
    kv_bytes = (
        2 * config["num_hidden_layers"] * config["hidden_size"] * 4 * min(config["max_position_embeddings"], 4096)
    )
    memory = psutil.virtual_memory()
    for adapters, bytes_of_one in ((), 2), ([("one", str(tmp_path / "some_layers"), 1.0)], 4):
        needed = int(1.1 * numbers * bytes_of_one) + kv_bytes
        for available, quantization in ((needed, "none"), (needed - 1, "int8")):
            monkeypatch.setattr(psutil, "virtual_memory", lambda found=available: memory._replace(available=found))
            loaded = loaded_in_float32(stored, quantization="auto", merged_adapters=adapters)
            assert loaded.quantization == quantization


def test_the_engine_says_what_its_weights_are(stored: Path, checkpoint: Path) -> None:
    for directory, weight_dtype in ((stored, stored.name), (checkpoint, "float32")):
        engine = Engine(loaded_in_float32(directory), sizes=SIZES)
        assert (engine.info.dtype, engine.info.weight_dtype) == ("float32", weight_dtype)
        engine.close()
