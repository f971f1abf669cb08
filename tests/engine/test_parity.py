"""The engine's answers are those of transformers, whatever the parameters and whoever else is in the batch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from phi3_serve.core.engine_event import Finished
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kernels import select
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.scheduler import Plan
from phi3_serve.engine.step_budget import MIN_TOKENS
from phi3_serve.parameters import NAMES
from tests.engine.asking import Answer, request
from tests.engine.parity import COMPANY, KINDS, Case, Parity, cases, draws, expect_equal, modes, verdict
from tests.oracle.reference import Oracle
from tests.random_checkpoint import Shape, make
from training.modules import load_with_modules, rounded_cache

NUM_CASES = 504
CONFIGS = Path(__file__).parents[1] / "data" / "configs"


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    parity = Parity(tmp_path_factory.mktemp("parity"), KINDS["plain"].shape)
    yield parity
    parity.close()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # generate() warns of parameters that have no effect together
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_random_requests_in_company(parity: Parity, seed: int) -> None:
    expect_equal(parity, cases(parity.loaded, seed), NUM_CASES // 6 // COMPANY)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantization", ["int8", "int4", "stored-bfloat16", "stored-float16"])
def test_rounded_weights_answer_as_transformers_does_with_them(quantization: str, tmp_path: Path) -> None:
    """Activations are not rounded, so the same weights in float32 are the oracle; widths are no multiples of a group."""
    shape = Shape(num_layers=2, hidden_size=48, intermediate_size=88)
    parity = Parity(tmp_path, shape, quantization=quantization)
    expect_equal(parity, cases(parity.loaded, 40), 4)
    parity.close()


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plain", pytest.param("window", marks=pytest.mark.slow)])
def test_a_cache_in_8_bits_answers_as_transformers_does_over_what_it_means(name: str, tmp_path: Path) -> None:
    parity = Parity(tmp_path, KINDS[name].shape, kv_cache_dtype="int8")
    expect_equal(parity, cases(parity.loaded, 50), 1)
    parity.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["window", "crossing"])
def test_requests_are_preempted_behind_the_window_and_the_crossing(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    parity = Parity(tmp_path, kind.shape)
    expect_equal(parity, cases(parity.loaded, 1, guided=kind.guided), 6)
    parity.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_few_calls_are_close(parity: Parity) -> None:
    """Otherwise "too close to call" would hide differences that are none of rounding."""
    some = list(islice((case for case in cases(parity.loaded, 99) if "num_beams" not in case.given), 15))
    close = [case for case in some if parity.is_close_call(case.request, parity.oracle.answer(case.request))]
    assert len(close) <= 1


def test_every_parameter_is_drawn() -> None:
    import random

    draw = random.Random(0)
    drawn = set(draws(draw)).union(*(modes(draw) for _ in range(200)))
    # these are resolved before the engine: totals from max_length and min_length
    of_lengths = {"max_length", "min_length", "max_new_tokens"}
    # these are OpenAI's and not in transformers; test_openai_parameters.py holds them to their definition
    of_openai = {"presence_penalty", "frequency_penalty", "top_logprobs", "prompt_logprobs"}
    # nor are these; test_parameters_of_other_servers.py holds them to their definition, those of text tests/text
    of_others = {"ignore_eos", "bad_words", "repeat_last_n"}
    of_text = {"stop", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"}
    of_prompt = {"truncate_prompt_tokens", "truncation_side"}
    assert drawn | of_lengths | of_openai | of_others | of_text | of_prompt == set(NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_requests_are_preempted_in_the_fuzz(parity: Parity) -> None:
    """The fuzz is worth its name only if answers are interrupted in it."""
    preempted = []
    scheduler = parity.engine._core.scheduler
    preempt = scheduler.preempt_youngest

    def count(plan: Plan) -> Generation:
        preempted.append(preempt(plan))
        return preempted[-1]

    scheduler.preempt_youngest = count  # type: ignore[method-assign]
    drawn = cases(parity.loaded, 77)
    for _ in range(4):
        parity.run(list(islice(drawn, COMPANY)))
    scheduler.preempt_youngest = preempt  # type: ignore[method-assign]
    assert len(preempted) > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_steps_without_memory_change_no_answer(parity: Parity, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails after its blocks were copied and reserved leaves nothing wrong behind."""
    core = parity.engine._core
    run: Any = core.runner.run
    draw = Random(5)
    failed = []

    def run_or_fail(chunks: Sequence[Chunk]) -> torch.Tensor:
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        if num_tokens > MIN_TOKENS and draw.random() < 0.5:
            failed.append(num_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: torch.Tensor = run(chunks)
        return result

    monkeypatch.setattr(core.runner, "run", run_or_fail)
    budget = core.scheduler.budget
    monkeypatch.setattr(budget, "count_fitting_step", lambda: setattr(budget, "limit", budget.most))
    expect_equal(parity, cases(parity.loaded, 31), 6)
    assert len(failed) > 5


GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": 703}


def answers_equal(loaded: LoadedModel, engine: Engine, asked: list[Any]) -> None:
    oracle = Oracle(loaded)
    answers = [Answer(engine, made) for made in asked]
    for made, answer in zip(asked, answers, strict=True):
        theirs = oracle.answer(made)
        assert not hasattr(theirs, "error"), theirs
        assert answer.ids() == [s.token_ids for s in theirs.sequences], made.request_id


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    ],
)
@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 6, "min_new_tokens": 9, "eos_token_id": list(range(3, 100))},
        {"max_length": 11, "min_length": 300, "eos_token_id": list(range(3, 100))},
        {"max_new_tokens": 6, "eos_token_id": []},
        {"max_new_tokens": 6, "suppress_tokens": [], "begin_suppress_tokens": []},
    ],
)
def test_what_transformers_only_warns_of_is_answered(
    parity: Parity, given: dict[str, Any], way: dict[str, Any]
) -> None:
    made = request(parity.loaded, **{"do_sample": False, **given, **way})
    theirs = parity.oracle.answer(made)
    ((streamed, ours),) = parity.answers([made])
    case = Case(made.prompt_ids, {"do_sample": False, **given, **way})
    assert verdict(case, (streamed, ours), theirs) == "equal", (ours, theirs)


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("longrope")
    make(directory, Shape(num_layers=2, context_length=4096, long_context_length=16384), seed=3)
    return load_with_modules(directory)


def prompt(length: int) -> tuple[int, ...]:
    return tuple(3 + (i * i + 7 * i) % 690 for i in range(length))


@pytest.mark.parametrize("length", [4090, 4095, 4096, 4097])
@pytest.mark.parametrize("given", [{}, {"num_beams": 3}])
def test_long_rope_is_chosen_for_each_request(longrope: LoadedModel, length: int, given: dict[str, Any]) -> None:
    """Crossing 4,096 tokens changes RoPE and recomputes all keys, of this request and of no other."""
    engine = Engine(longrope, sizes=EngineSizes(num_blocks=2500, token_budget=1024, max_rows=64))
    asked = [request(longrope, "long", prompt=prompt(length), max_new_tokens=12, **GREEDY, **given)]
    asked += [request(longrope, f"short{i}", prompt=prompt(20 + i)[i:], max_new_tokens=40, **GREEDY) for i in range(3)]
    answers_equal(longrope, engine, asked)
    engine.close()
    engine.blocks.check_integrity([])


def test_lookup_stops_at_the_crossing(longrope: LoadedModel) -> None:
    engine = Engine(longrope, sizes=EngineSizes(num_blocks=600, token_budget=1024, max_rows=64))
    repeating = ((389, 512, 380, 77) * 1024)[:4085]
    plain = Answer(engine, request(longrope, prompt=repeating, max_new_tokens=24, **GREEDY)).ids()
    made = request(longrope, prompt=repeating, max_new_tokens=24, prompt_lookup_num_tokens=8, **GREEDY)
    assert Answer(engine, made).ids() == plain
    answers_equal(longrope, engine, [request(longrope, prompt=repeating, max_new_tokens=24, **GREEDY)])
    engine.close()


def test_a_prefix_is_known_by_its_rope_too(longrope: LoadedModel) -> None:
    """The same tokens have other keys in a long prompt than in a short one."""
    engine = Engine(longrope, sizes=EngineSizes(num_blocks=1200, token_budget=1024, max_rows=64))
    for length in (200, 5000, 200, 5000):
        answers_equal(longrope, engine, [request(longrope, prompt=prompt(5000)[:length], max_new_tokens=6, **GREEDY)])
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("budget", [64, 1024])
def test_the_window_is_honoured_far_beyond_it(tmp_path: Path, budget: int) -> None:
    make(tmp_path, Shape(num_layers=3, sliding_window=47), seed=5)
    loaded = load_with_modules(tmp_path)
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=800, token_budget=budget, max_rows=64))
    kinds: list[dict[str, Any]] = [
        {},
        {"num_beams": 4, "num_return_sequences": 4},
        {"prompt_lookup_num_tokens": 4},
        {"guidance_scale": 1.5},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    ]
    lengths = [5, 46, 47, 48, 300]
    asked = [(n, i) for n in lengths for i in range(len(kinds))]
    made = [request(loaded, f"{n}-{i}", prompt=prompt(n), max_new_tokens=60, **GREEDY, **kinds[i]) for n, i in asked]
    oracle = Oracle(loaded)
    answers = [Answer(engine, one) for one in made]
    for one, answer in zip(made, answers, strict=True):
        # lookup must not change the answer, so the oracle answers without it
        plain = replace(one, parameters=replace(one.parameters, prompt_lookup_num_tokens=None))
        theirs = oracle.answer(plain)
        assert not hasattr(theirs, "error")
        assert answer.ids() == [s.token_ids for s in theirs.sequences], one.request_id
    engine.close()
    engine.blocks.check_integrity([])


@pytest.mark.parametrize(
    "shape", [Shape(num_heads=4, num_kv_heads=2, hidden_size=64), Shape(num_heads=4, num_kv_heads=1)]
)
def test_grouped_queries(tmp_path: Path, shape: Shape) -> None:
    """Medium has fewer heads of keys than of queries."""
    make(tmp_path, shape, seed=2)
    loaded = load_with_modules(tmp_path)
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=400, token_budget=64, max_rows=64))
    asked = [request(loaded, f"{n}", prompt=prompt(n), max_new_tokens=20, **GREEDY) for n in (5, 90, 200)]
    asked += [request(loaded, f"b{n}", prompt=prompt(n), max_new_tokens=20, num_beams=4, **GREEDY) for n in (5, 90)]
    answers_equal(loaded, engine, asked)
    engine.close()


def test_bfloat16_is_float32_but_for_its_rounding(tmp_path: Path) -> None:
    """Its scores are as near to those of float32 as those of transformers in bfloat16 are, over the same weights."""
    make(tmp_path, Shape(num_layers=3, num_heads=4, num_kv_heads=2, hidden_size=128, intermediate_size=192), seed=4)
    half = load_with_modules(tmp_path, dtype="bfloat16")
    whole = load_with_modules(tmp_path)
    whole.model.load_state_dict(half.model.state_dict())  # the weights as rounded
    engine = Engine(half, sizes=EngineSizes(num_blocks=400, token_budget=64, max_rows=64))
    asked = [
        request(half, f"r{n}", prompt=prompt(n), max_new_tokens=30, output_scores=True, **GREEDY)
        for n in (1, 5, 17, 60, 200)
    ]
    ours, theirs = [], []
    for made, answer in zip(asked, [Answer(engine, made) for made in asked], strict=True):
        (found,) = answer.sequences()
        ids = torch.tensor([made.prompt_ids + found.token_ids])
        with torch.inference_mode():
            exact, rounded = (
                x.model(ids)
                .logits[0, len(made.prompt_ids) - 1 : -1]
                .float()
                .log_softmax(-1)
                .gather(1, ids.T[-30:])[:, 0]
                for x in (whole, half)
            )
        assert found.scores is not None
        ours.append((torch.tensor(found.scores) - exact).abs())
        theirs.append((rounded - exact).abs())
    engine.close()
    assert torch.cat(ours).mean() < 1.25 * torch.cat(theirs).mean()
    assert torch.cat(ours).max() < 2 * torch.cat(theirs).max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and a machine that had no compiler, take what torch has; it has to compute the same."""
    monkeypatch.setattr(select, "cpu_library", lambda: None)
    parity = Parity(tmp_path, KINDS["plain"].shape)
    assert type(parity.engine._core.runner.kernels) is ReferenceKernels
    expect_equal(parity, cases(parity.loaded, 31), 3)
    parity.close()


@pytest.mark.slow
def test_a_cache_in_8_bits_crosses_to_the_long_factors_of_the_128k_variants(tmp_path: Path) -> None:
    """Keys with short factors are computed and rounded again with long ones behind 4,096 tokens, as transformers does."""
    shape = Shape(hidden_size=192, intermediate_size=128, context_length=4096, long_context_length=131_072)
    make(tmp_path, shape, seed=3)
    stored = json.loads((tmp_path / "config.json").read_text())
    published = json.loads((CONFIGS / "phi-3-mini-128k-instruct.config.json").read_text())["rope_scaling"]
    stored["rope_parameters"] |= {name: published[name] for name in ("short_factor", "long_factor")}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    loaded = load_with_modules(tmp_path)
    prompt = tuple(Random(0).choices(range(5, 600), k=4085))
    asked = request(loaded, prompt=prompt, do_sample=False, max_new_tokens=24, min_new_tokens=24)
    with rounded_cache("int8"):
        expected = Oracle(loaded).answer(asked)
    unrounded = Oracle(loaded).answer(asked)
    assert isinstance(expected, Finished)
    assert isinstance(unrounded, Finished)
    assert unrounded.sequences != expected.sequences  # else nothing is shown of the rounding
    sizes = EngineSizes(num_blocks=300, token_budget=512, max_rows=4, kv_cache_dtype="int8")
    engine = Engine(load("tested", str(tmp_path), None, device="cpu", dtype="float32"), sizes=sizes)
    found = Answer(engine, asked).ids()
    in_company = [Answer(engine, asked), Answer(engine, request(loaded, "short", do_sample=False, max_new_tokens=40))]
    assert found == [one.token_ids for one in expected.sequences] == in_company[0].ids()
    engine.close()
