"""The engine with adapters answers as PEFT over transformers does, whoever else is in the batch."""

import gc
import json
import math
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.core.engine_event import Finished
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.adapters.loaded_adapter import LoadedAdapter
from phi3_serve.engine.adapters.reader import read_adapter
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.errors import CheckpointError, CheckpointIncomplete, InvalidRequest
from tests.engine.asking import Answer, request
from tests.engine.parity import KINDS, Parity, expect_equal
from tests.oracle.adapters import KINDS as ADAPTER_KINDS
from tests.oracle.adapters import AdapterOracle, save_adapters
from tests.random_checkpoint import Shape, make
from training.modules import load_with_modules

GREEDY: dict[str, Any] = {"do_sample": False, "min_new_tokens": 8, "max_new_tokens": 8}
LONG = tuple(3 + (i * i + 7 * i) % 600 for i in range(70))
A = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_B.weight"


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    parity = Parity(tmp_path_factory.mktemp("parity"), KINDS["plain"].shape, with_adapters=True)
    parity._all_are_there.set()
    yield parity
    parity.close()


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("adapters")
    make(directory / "model", KINDS["plain"].shape, seed=7)
    save_adapters(load_with_modules(directory / "model"), directory, ["all"], seed=1)
    return directory


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A new adapter for the checkpoint of ``parity``, to be changed."""
    return Path(shutil.copytree(saved_once, tmp_path / "adapters"))


def applied(parity: Parity, **strengths: float) -> tuple[AppliedAdapter, ...]:
    of = {adapter.name: adapter for adapter in parity.adapters}
    return tuple(AppliedAdapter(of[name], strength) for name, strength in strengths.items())


def asked(parity: Parity, name: str = "r", *, adapters: tuple[AppliedAdapter, ...] = (), **given: Any) -> EngineRequest:
    return replace(request(parity.loaded, name, **GREEDY | given), adapters=adapters)


def meant(parity: Parity, made: EngineRequest) -> list[tuple[int, ...]]:
    """The answer of PEFT."""
    theirs = parity.oracle.answer(made)
    assert isinstance(theirs, Finished), theirs
    return [sequence.token_ids for sequence in theirs.sequences]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_random_requests_in_company(parity: Parity, seed: int) -> None:
    """With one adapter or several, beside rows without any."""
    expect_equal(parity, parity.cases(seed), 2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["window", "crossing"])
def test_behind_the_window_and_the_crossing(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    parity = Parity(tmp_path, kind.shape, with_adapters=True)
    expect_equal(parity, parity.cases(1, guided=kind.guided), 4)
    parity.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_over_rounded_weights(quantization: str, tmp_path: Path) -> None:
    """The oracle is PEFT over the weights as rounded."""
    shape = Shape(num_layers=2, hidden_size=48, intermediate_size=88)
    parity = Parity(tmp_path, shape, quantization=quantization, with_adapters=True)
    expect_equal(parity, parity.cases(40), 3)
    parity.close()


@pytest.mark.parametrize("kind", [*ADAPTER_KINDS])
def test_every_kind_changes_answers_as_peft_does(parity: Parity, kind: str) -> None:
    plain = meant(parity, asked(parity))
    made = asked(parity, adapters=applied(parity, **{kind: 1.0}))
    assert Answer(parity.engine, made).ids() == meant(parity, made) != plain


def test_several_adapters_add_up(parity: Parity) -> None:
    """As with ``set_adapter`` and a list; ``add_weighted_adapter`` calls it "cat"."""
    made = asked(parity, adapters=applied(parity, all=0.5, head=-1.0, patterns=2.0))
    alone = asked(parity, adapters=applied(parity, all=0.5))
    assert Answer(parity.engine, made).ids() == meant(parity, made) != meant(parity, alone)


def test_strength_0_is_no_adapter(parity: Parity) -> None:
    made = asked(parity, adapters=applied(parity, all=0.0))
    assert Answer(parity.engine, made).ids() == Answer(parity.engine, asked(parity)).ids()


def test_a_prefix_is_known_by_its_adapters_and_strengths(parity: Parity) -> None:
    """The same prompt has other keys with other adapters, and the same keys with the same ones."""
    statistics = parity.engine.statistics
    ways = [(), applied(parity, all=1.0), applied(parity, all=0.5), applied(parity, all=1.0, stable=1.0)]
    for number, adapters in enumerate(ways):
        before = statistics.prefix_cache_hits
        made = asked(parity, f"first-{number}", prompt=LONG, adapters=adapters)
        assert Answer(parity.engine, made).ids() == meant(parity, made)
        assert statistics.prefix_cache_hits == before
    before = statistics.prefix_cache_hits
    again = asked(parity, "again", prompt=LONG, adapters=ways[2])
    assert Answer(parity.engine, again).ids() == meant(parity, again)
    assert statistics.prefix_cache_hits == before + len(LONG) // 16 * 16


def test_a_new_version_is_another_adapter(parity: Parity, saved: Path) -> None:
    old, new = parity.adapters[0], parity.engine.load_adapter("all", str(saved / "all"))
    assert (new.name, new.num_bytes) == (old.name, old.num_bytes)
    assert new.number != old.number
    answers = [
        Answer(parity.engine, asked(parity, prompt=LONG, adapters=(AppliedAdapter(one, 1.0),))).ids()
        for one in (old, new, old)
    ]
    assert answers[0] == answers[2] != answers[1]


def test_the_memory_of_an_adapter_ends_with_its_last_request(parity: Parity, saved: Path) -> None:
    """Although blocks that it has computed stay in the prefix cache."""
    adapter = parity.engine.load_adapter("all", str(saved / "all"))
    assert isinstance(adapter, LoadedAdapter)
    matrix = next(change.a for change in adapter.changes if change is not None)
    reference = weakref.ref(matrix.untyped_storage())
    running = Answer(parity.engine, asked(parity, prompt=LONG, adapters=(AppliedAdapter(adapter, 1.0),)))
    del adapter, matrix
    running.ids()
    del running
    assert Answer(parity.engine, asked(parity)).ids()  # the engine has forgotten the last step
    gc.collect()
    assert reference() is None


def test_loading_stops_no_step(parity: Parity, saved: Path) -> None:
    """An adapter is read on another thread, while requests go on."""
    stop, loaded = threading.Event(), []

    def load_all() -> None:
        while not stop.is_set():
            loaded.append(parity.engine.load_adapter("all", str(saved / "all")).number)

    thread = threading.Thread(target=load_all)
    thread.start()
    try:
        made = [asked(parity, f"r{n}", prompt=LONG[n:], adapters=applied(parity, all=1.0)) for n in range(4)]
        answers = [Answer(parity.engine, one) for one in made]
        found = [answer.ids() for answer in answers]
        until = time.monotonic() + 30
        while not loaded and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join()
    assert found == [meant(parity, one) for one in made]
    assert len(set(loaded)) == len(loaded) > 0


def test_ranks_are_limited_together(parity: Parity, saved: Path) -> None:
    config = saved / "all" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 128}))
    tensors = load_file(saved / "all" / "adapter_model.safetensors")
    wide = {name: _repeated(tensor, 32, dim=0 if "lora_A" in name else 1) for name, tensor in tensors.items()}
    save_file(wide, saved / "all" / "adapter_model.safetensors")
    wides = [AppliedAdapter(parity.engine.load_adapter(f"wide{n}", str(saved / "all")), 0.1) for n in range(3)]
    assert Answer(parity.engine, asked(parity, adapters=tuple(wides[:2]))).ids()
    with pytest.raises(InvalidRequest, match="ranks of 384 together; at most 256"):
        Answer(parity.engine, asked(parity, adapters=tuple(wides)))
    with pytest.raises(InvalidRequest, match="the strength of wide0 is nan"):
        Answer(parity.engine, asked(parity, adapters=(replace(wides[0], strength=math.nan),)))


def _repeated(tensor: Tensor, times: int, dim: int) -> Tensor:
    return torch.cat([tensor] * times, dim).contiguous()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peft_type": "LOHA"}, 'peft_type is "LOHA"; allowed: LORA'),
        ({"use_dora": True}, "use_dora is true; allowed: none"),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save is ["lm_head"]; allowed: none'),
        ({"bias": "all"}, 'bias is "all"; allowed: none'),
        ({"lora_bias": True}, "lora_bias is true; allowed: none"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is true; allowed: none"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is [3]; allowed: none"),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa"; allowed: true, false, "gaussian"'),
        ({"r": 257}, "r is 257; allowed: 1 to 256"),
        ({"r": 0}, "r is 0; allowed: 1 to 256"),
        ({"rank_pattern": {"o_proj": 300}}, "rank_pattern is 300; allowed: 1 to 256"),
        ({"lora_alpha": "x"}, 'lora_alpha is "x"; allowed: finite numbers'),
        ({"rank_pattern": [2]}, "rank_pattern is [2]; allowed: an object of patterns"),
        (
            {"target_modules": ["q_proj"]},
            'target_modules is ["q_proj"], which no layer of the model matches; allowed are down_proj',
        ),
        ({"target_modules": "("}, 'target_modules: "(" is no regular expression'),
        ({"target_modules": "x"}, 'target_modules is "x", which no layer of the model matches; allowed are down_proj'),
        ({"target_modules": None}, "target_modules is null, which no layer of the model matches"),
        ({"target_modules": [1]}, "target_modules is [1]; allowed: a pattern or a list of at most 1000 names"),
        ({"layers_to_transform": "1"}, 'layers_to_transform is "1"; allowed: at most 1000 numbers of layers'),
    ],
)
def test_a_config_is_refused_in_one_line(parity: Parity, saved: Path, changed: dict[str, Any], message: str) -> None:
    config = saved / "all" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    assert refusal(parity, saved / "all").startswith(f"{config}: {message}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({A: None}, f"tensor {A} is missing, and 0 more"),
        ({B: None}, f"tensor {B} is missing, and 0 more"),
        (
            {A: torch.zeros(4, 33)},
            f"tensor {A} has the shape [4, 33]; the model and adapter_config.json call for [4, 32]",
        ),
        ({A: torch.zeros(5, 32)}, f"tensor {A} has the shape [5, 32]"),
        ({A: torch.full((4, 32), torch.nan)}, f"tensor {A} has nan or inf; the adapter is damaged"),
        ({B: torch.full((96, 4), torch.inf)}, f"tensor {B} has nan or inf; the adapter is damaged"),
        ({A: torch.zeros(4, 32, dtype=torch.int8)}, f"tensor {A} has the type I8; allowed"),
        ({"x.lora_A.weight": torch.zeros(1)}, "tensor x.lora_A.weight is not one that adapter_config.json calls for"),
        (
            {"base_model.model.model.embed_tokens.weight": torch.zeros(1)},
            "tensor base_model.model.model.embed_tokens.weight is not one that adapter_config.json calls for; allowed "
            "are lora_A and lora_B of its target_modules; save the adapter with save_embedding_layers=False",
        ),
    ],
)
def test_tensors_are_refused_in_one_line(
    parity: Parity, saved: Path, changed: dict[str, Tensor | None], message: str
) -> None:
    file = saved / "all" / "adapter_model.safetensors"
    tensors = load_file(file) | changed
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    assert refusal(parity, saved / "all").startswith(f"{file}: {message}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("alpha", [1e12, 1e30, -1e30])
@pytest.mark.parametrize("is_merged", [False, True])
def test_a_change_that_overflows_is_refused_in_one_line(saved: Path, dtype: str, alpha: float, is_merged: bool) -> None:
    """It would turn answers into garbage, or make the self-test blame the weights of the model."""
    config = saved / "all" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": alpha}))
    merged = [("mine", str(saved / "all"), 1.0)] if is_merged else []

    def start() -> None:
        loaded = load("m", str(saved / "model"), None, device="cpu", dtype=dtype, merged_adapters=merged)
        with closing(Engine(loaded, sizes=EngineSizes(64, 64, 8))) as engine:
            engine.load_adapter("mine", str(saved / "all"))

    with pytest.raises(CheckpointError) as caught:
        start()
    assert caught.value.message.startswith(
        f"{saved / 'all' / 'adapter_model.safetensors'}: tensors {A} and lora_B.weight may change a weight by "
    )
    assert caught.value.message.endswith("* strength 10; allowed: at most 1e+10")


def test_a_change_of_float16_has_its_range(saved: Path) -> None:
    config = saved / "all" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1e6}))
    of_model = load_with_modules(saved / "model").model.config
    assert read_adapter("mine", saved / "all", of_model, torch.float32).num_bytes
    with pytest.raises(CheckpointError, match=r"allowed: at most 6\.55e\+04"):
        read_adapter("mine", saved / "all", of_model, torch.float32, computed_in=torch.float16)


def test_files_are_refused_in_one_line(parity: Parity, saved: Path) -> None:
    file, config = saved / "all" / "adapter_model.safetensors", saved / "all" / "adapter_config.json"
    file.write_bytes(file.read_bytes()[:-100])
    assert refusal(parity, saved / "all").startswith(f"{file}: cannot be read: ")
    file.rename(saved / "all" / "adapter_model.bin")
    assert refusal(parity, saved / "all", CheckpointIncomplete) == (
        f"{file}: there is no such file; adapter_model.bin is a pickle, which may run any code; allowed is safetensors"
    )
    config.write_text("[")
    assert refusal(parity, saved / "all").startswith(f"{config}: cannot be read as JSON")
    assert refusal(parity, saved / "none", CheckpointIncomplete) == f"{saved / 'none' / config.name}: file is missing"


def refusal(parity: Parity, directory: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        parity.engine.load_adapter("mine", str(directory))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_an_adapter_of_another_model_is_refused(parity: Parity, tmp_path: Path) -> None:
    make(tmp_path / "model", Shape(num_layers=3, hidden_size=48), seed=7)
    save_adapters(load_with_modules(tmp_path / "model"), tmp_path, ["all"])
    assert "the model and adapter_config.json call for" in refusal(parity, tmp_path / "all")


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_merged_at_load_is_the_adapter_applied_always(tmp_path: Path, quantization: str) -> None:
    """Merged weights are those of PEFT's ``merge_and_unload`` but for the order of one sum, and are then rounded."""
    make(tmp_path / "model", KINDS["plain"].shape, seed=7)
    theirs = load_with_modules(tmp_path / "model")
    model = save_adapters(theirs, tmp_path, ["all", "patterns"])
    always = [("one", str(tmp_path / "all"), 0.5), ("two", str(tmp_path / "patterns"), 2.0)]
    ours = load(
        "mine",
        str(tmp_path / "model"),
        None,
        device="cpu",
        dtype="float32",
        quantization=quantization,
        merged_adapters=always,
    )
    oracle = AdapterOracle(theirs)
    by_name = Engine(load_with_modules(tmp_path / "model"), sizes=EngineSizes(64, 64, 8))
    adapters = tuple(
        AppliedAdapter(by_name.load_adapter(path.rpartition("/")[2], path), strength) for _, path, strength in always
    )
    made = request(theirs, **GREEDY)
    if quantization == "none":
        merged = Engine(ours, sizes=EngineSizes(64, 64, 8))
        expected = oracle.answer(replace(made, adapters=adapters))
        assert isinstance(expected, Finished)
        ids = [sequence.token_ids for sequence in expected.sequences]
        assert Answer(merged, made).ids() == Answer(by_name, replace(made, adapters=adapters)).ids() == ids
        merged.close()
    by_name.close()
    oracle.answer(replace(made, adapters=adapters))  # sets the strengths
    unloaded = model.merge_and_unload()
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.o_proj"):
        weight, expected_weight = ours.model.get_submodule(name), unloaded.get_submodule(name).weight
        found = weight.weight if quantization == "none" else weight.dequantized()
        step = 1e-6 if quantization == "none" else float(expected_weight.abs().max()) / 127
        assert (found - expected_weight).abs().max() <= step


def test_what_cannot_be_merged_is_refused_in_one_line(tmp_path: Path) -> None:
    make(tmp_path / "model", KINDS["plain"].shape, seed=7)
    save_adapters(load_with_modules(tmp_path / "model"), tmp_path, ["all", "head"])
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": True}))
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(
            "m",
            str(tmp_path / "model"),
            None,
            device="cpu",
            dtype="auto",
            merged_adapters=[("h", str(tmp_path / "head"), 1.0)],
        )
    assert caught.value.message == (
        "m: adapter h cannot be applied always: it changes lm_head, which is the embedding, too; offer the adapter by name"
    )
    with pytest.raises(CheckpointError, match="its strength is inf"):
        load(
            "m",
            str(tmp_path / "model"),
            None,
            device="cpu",
            dtype="auto",
            merged_adapters=[("a", str(tmp_path / "all"), math.inf)],
        )
