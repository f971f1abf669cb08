"""The log-probabilities of prompts are those of the forward pass of transformers, whatever else the engine runs."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from phi3_serve.core.engine_event import Finished, NewTokens, ScoredPrompt
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.generated_sequence import TokenLogprobs
from phi3_serve.engine import engine_core
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.sampling import logprobs
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import MAX_PROMPT_LOGPROBS
from tests.engine.asking import Answer, request
from tests.engine.model.replayer import runner_on_cpu
from tests.random_checkpoint import Shape, make
from tests.support import ENDLESS
from training.modules import load_with_modules

BUDGET = 64
SIZES = EngineSizes(num_blocks=600, token_budget=BUDGET, max_rows=16)
CROSSING = 96  # tokens; from the next one on RoPE takes its long factors
TOLERANCE = 1e-4


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    """An engine that has to give every block back in the end."""
    engine = Engine(loaded, sizes=SIZES)
    yield engine
    engine.close()
    engine.blocks.check_integrity([])
    assert engine.blocks.num_available == SIZES.num_blocks


def tokens(length: int, seed: int = 0) -> tuple[int, ...]:
    draw = Random(seed)
    return tuple(draw.randrange(3, 700) for _ in range(length))


def asked(loaded: LoadedModel, prompt: tuple[int, ...], count: int = 3, name: str = "r", **given: Any) -> EngineRequest:
    given = {"do_sample": False, "max_new_tokens": 4, **ENDLESS, **given}
    return request(loaded, name, prompt=prompt, prompt_logprobs=count, **given)


def scored(answer: Answer) -> tuple[TokenLogprobs, ...]:
    """The log-probabilities of the prompt, which come once and before any token."""
    events = [answer.events.get(timeout=120)]
    while not isinstance(events[-1], Finished | Failed):
        events.append(answer.events.get(timeout=120))
    assert isinstance(events[-1], Finished), events[-1]
    found = [event for event in events if isinstance(event, ScoredPrompt)]
    assert len(found) == 1
    assert events[0] is found[0]
    return found[0].logprobs


def expect_oracle(loaded: LoadedModel, prompt: tuple[int, ...], found: tuple[TokenLogprobs, ...], count: int) -> None:
    with torch.inference_mode():
        expected = loaded.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    assert len(found) == len(prompt) - 1
    for position, of_token in enumerate(found):
        row = expected[position]
        assert of_token.chosen == pytest.approx(row[prompt[position + 1]].item(), abs=TOLERANCE)
        assert len(of_token.likeliest) == count
        values, _ = row.topk(count)
        assert [value for _, value in of_token.likeliest] == pytest.approx(values.tolist(), abs=TOLERANCE)
        for token, value in of_token.likeliest:
            assert value == pytest.approx(row[token].item(), abs=TOLERANCE)
        assert of_token.rank is not None
        # a rank may differ where two tokens are as likely as each other
        assert (row > of_token.chosen + TOLERANCE).sum() < of_token.rank <= (row >= of_token.chosen - TOLERANCE).sum()


@pytest.mark.parametrize("length", [2, 15, 16, 17, BUDGET - 1, BUDGET, BUDGET + 1, BUDGET + 2, 300])
@pytest.mark.parametrize("count", [0, 5])
def test_they_are_those_of_transformers(engine: Engine, loaded: LoadedModel, length: int, count: int) -> None:
    prompt = tokens(length)
    expect_oracle(loaded, prompt, scored(Answer(engine, asked(loaded, prompt, count))), count)


def test_an_answer_of_one_token(engine: Engine, loaded: LoadedModel) -> None:
    """The answer has ended when the prompt is scored."""
    for length in (2, 100):
        prompt = tokens(length)
        expect_oracle(loaded, prompt, scored(Answer(engine, asked(loaded, prompt, max_new_tokens=1))), 3)


def test_a_prompt_of_one_token_has_none(engine: Engine, loaded: LoadedModel) -> None:
    events = Answer(engine, asked(loaded, (5,), stream=True)).all()
    assert not [event for event in events if isinstance(event, ScoredPrompt)]


def test_the_answer_is_the_same(engine: Engine, loaded: LoadedModel) -> None:
    prompt = tokens(100)
    plain = request(loaded, prompt=prompt, do_sample=False, max_new_tokens=12)
    with_logprobs = asked(loaded, prompt, max_new_tokens=12, eos_token_id=None, suppress_tokens=None)
    events = Answer(engine, with_logprobs)
    first = events.events.get(timeout=60)
    assert isinstance(first, ScoredPrompt)
    assert events.ids() == Answer(engine, plain).ids()


def test_a_cached_prefix_is_computed_again(engine: Engine, loaded: LoadedModel) -> None:
    prompt = tokens(120)
    Answer(engine, request(loaded, prompt=prompt, do_sample=False, max_new_tokens=2)).last()
    for _ in range(2):
        expect_oracle(loaded, prompt, scored(Answer(engine, asked(loaded, prompt))), 3)
    # what it computes is published for others
    steps: list[int] = []
    engine._on_step = lambda stats: steps.append(stats.num_tokens)
    Answer(engine, request(loaded, prompt=(*prompt, 9), do_sample=False, max_new_tokens=1)).last()
    assert sum(steps) < 20


def test_in_company(engine: Engine, loaded: LoadedModel) -> None:
    """Prompts of all lengths at once, some with common prefixes, beside answers that are generated."""
    prefix = tokens(70)
    prompts = [(*prefix[: 10 * n], *tokens(7 * n + 2, seed=n)) for n in range(8)]
    others = [
        Answer(engine, request(loaded, f"o{n}", prompt=prompt, do_sample=False, max_new_tokens=30, **ENDLESS))
        for n, prompt in enumerate(prompts)
    ]
    answers = [Answer(engine, asked(loaded, p, n % 4, f"s{n}", stream=n % 2 == 0)) for n, p in enumerate(prompts)]
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        expect_oracle(loaded, prompt, scored(answer), number % 4)
    assert all(isinstance(other.last(), Finished) for other in others)


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"do_sample": True, "num_return_sequences": 3, "seed": 1},
        {"guidance_scale": 1.5},
        {"guidance_scale": 1.5, "num_beams": 2},
        {"prompt_lookup_num_tokens": 3},
        {"top_logprobs": 2, "output_scores": True, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_with_every_search(engine: Engine, loaded: LoadedModel, given: dict[str, Any]) -> None:
    for length in (2, 65, 90):
        prompt = tokens(length, seed=4)
        plain = request(loaded, prompt=prompt, **{"do_sample": False, "max_new_tokens": 4, **ENDLESS, **given})
        answer = Answer(engine, asked(loaded, prompt, **given))
        first = answer.events.get(timeout=60)
        assert isinstance(first, ScoredPrompt)
        expect_oracle(loaded, prompt, first.logprobs, 3)
        assert answer.ids() == Answer(engine, plain).ids()


@pytest.mark.parametrize("seed", range(3))
def test_preempted_prompts(loaded: LoadedModel, seed: int) -> None:
    """A cache that does not hold all: requests lose their blocks while their prompts are scored."""
    sizes = EngineSizes(num_blocks=24, token_budget=BUDGET, max_rows=16)
    engine = Engine(loaded, sizes=sizes)
    scheduler = engine._core.scheduler
    preempt, interrupted = scheduler._preempt, []

    def count(generation: Any) -> None:
        interrupted.append(generation.num_unscored)
        preempt(generation)

    scheduler._preempt = count  # type: ignore[method-assign]
    draw = Random(seed)
    prompts = [tokens(draw.randint(2, 200), seed=seed * 100 + n) for n in range(12)]
    answers = [Answer(engine, asked(loaded, p, 1, f"{n}", max_new_tokens=60)) for n, p in enumerate(prompts)]
    for prompt, answer in zip(prompts, answers, strict=True):
        expect_oracle(loaded, prompt, scored(answer), 1)
    engine.close()
    engine.blocks.check_integrity([])
    assert interrupted


def test_a_prompt_that_is_preempted_in_its_middle_goes_on_behind_what_is_scored(loaded: LoadedModel) -> None:
    core = engine_core.EngineCore(loaded, SIZES)
    prompt = tokens(200)
    generation = core.generation(asked(loaded, prompt), lambda event: None)
    core.scheduler.add(generation)
    events = core.run(core.schedule()).events
    assert (events, generation.num_unscored) == ([], 199 - BUDGET)
    core.scheduler.preempt_youngest(core.schedule())
    plan = core.schedule()
    (chunk,) = plan.all_chunks
    assert (chunk.start, chunk.num_prompt_logits) == (BUDGET, BUDGET)  # the blocks before it came from the prefix cache
    events = core.run(plan).events
    while not events:
        events = core.run(core.schedule()).events
    (_, event), *_ = events
    assert isinstance(event, ScoredPrompt)
    expect_oracle(loaded, prompt, event.logprobs, 3)


@pytest.mark.parametrize("window", [None, 21])
def test_beyond_the_window_and_the_crossing(tmp_path: Path, window: int | None) -> None:
    shape = Shape(sliding_window=window, context_length=CROSSING, long_context_length=512)
    make(tmp_path, shape, seed=5)
    loaded = load_with_modules(tmp_path)
    engine = Engine(loaded, sizes=SIZES)
    for length in (40, CROSSING - 1, CROSSING, CROSSING + 1, 200):
        prompt = tokens(length)
        expect_oracle(loaded, prompt, scored(Answer(engine, asked(loaded, prompt, 2, max_new_tokens=20))), 2)
    engine.close()
    engine.blocks.check_integrity([])


def test_on_a_device_that_works_ahead_of_the_host(loaded: LoadedModel) -> None:
    engine = Engine(loaded, sizes=SIZES, make_runner=runner_on_cpu)
    prompts = [tokens(length, seed=length) for length in (2, 30, 64, 65, 150)]
    others = [Answer(engine, request(loaded, f"o{n}", prompt=p, max_new_tokens=20)) for n, p in enumerate(prompts)]
    answers = [Answer(engine, asked(loaded, p, 2, f"{n}")) for n, p in enumerate(prompts)]
    for prompt, answer in zip(prompts, answers, strict=True):
        expect_oracle(loaded, prompt, scored(answer), 2)
    assert all(isinstance(other.last(), Finished) for other in others)
    engine.close()


def test_no_step_has_logits_of_more_than_its_tokens(
    engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory that a long prompt takes does not grow with its length."""
    of_steps, together = [], []
    runner: Any = engine._core.runner
    run, of_rows = runner.run, logprobs._of_rows

    def run_and_note(chunks: Any) -> Any:
        result = run(chunks)
        of_steps.append(len(result))
        return result

    def note(logits: torch.Tensor, *rest: Any, **named: Any) -> Any:
        together.append(len(logits))
        return of_rows(logits, *rest, **named)

    monkeypatch.setattr(runner, "run", run_and_note)
    monkeypatch.setattr(logprobs, "_of_rows", note)
    scored(Answer(engine, asked(loaded, tokens(1500), 20)))
    assert max(of_steps) <= BUDGET
    assert max(together) <= logprobs.ROWS_AT_ONCE


def test_requests_that_ask_for_none_get_one_row_of_logits(engine: Engine, loaded: LoadedModel) -> None:
    rows = []
    runner: Any = engine._core.runner
    run = runner.run

    def run_and_note(chunks: Any) -> Any:
        result = run(chunks)
        rows.append(len(result))
        return result

    runner.run = run_and_note
    Answer(engine, request(loaded, prompt=tokens(200), do_sample=False, max_new_tokens=3)).last()
    assert set(rows) == {0, 1}


def test_a_failure_to_score_is_that_of_its_request_alone(
    engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(engine_core, "token_logprobs", fail)
    other = Answer(engine, request(loaded, "other", do_sample=False, max_new_tokens=30, **ENDLESS))
    event = Answer(engine, asked(loaded, tokens(100))).last()
    assert isinstance(event, Failed)
    assert "ZeroDivisionError" in event.error.message
    assert isinstance(other.last(), Finished)


def test_a_prompt_may_be_too_long_for_so_many(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3_serve.prepare.MAX_PROMPT_LOGPROBS", 400)
    asked(loaded, tokens(100), 3)
    with pytest.raises(InvalidRequest, match="`prompt_logprobs` is 3, which makes 404 log-probabilities") as caught:
        asked(loaded, tokens(101), 3)
    assert caught.value.param == "prompt_logprobs"
    assert MAX_PROMPT_LOGPROBS >= 2 * 131_071  # the longest prompt with one likeliest token


@pytest.mark.parametrize("given", [{}, {"prompt_lookup_num_tokens": 4}], ids=str)
def test_streamed_tokens_have_their_log_probabilities(
    engine: Engine, loaded: LoadedModel, given: dict[str, Any]
) -> None:
    asking: dict[str, Any] = {
        "prompt": tokens(9) * 2,
        "stream": True,
        "do_sample": False,
        "max_new_tokens": 20,
        **given,
    }
    *streamed, last = Answer(engine, request(loaded, top_logprobs=2, **asking)).all()
    assert isinstance(last, Finished)
    joined = [one for event in streamed if isinstance(event, NewTokens) for one in event.logprobs or ()]
    assert len(streamed) > 1
    assert tuple(joined) == last.sequences[0].logprobs
    *streamed, _ = Answer(engine, request(loaded, **asking)).all()
    assert {event.logprobs for event in streamed if isinstance(event, NewTokens)} == {None}
