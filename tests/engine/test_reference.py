"""The reference engine: transformers' own answers, one at a time, and nobody else's trouble."""

import queue
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.core import EngineEvent, EngineRequest, Failed, Finished, NewTokens, Sequence
from phi3_serve.engine import reference
from phi3_serve.engine.loader import LoadedModel, load
from phi3_serve.engine.reference import ReferenceEngine
from phi3_serve.errors import EngineFailure, InvalidRequest, Overloaded, RequestTimeout
from phi3_serve.parameters import GenerationParameters, lengths, resolve

PROMPT = (389, 512, 380, 619, 390)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load("tested", str(checkpoint), None, device="cpu", dtype="float32")


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[ReferenceEngine]:
    engine = ReferenceEngine(loaded, max_waiting=2)
    yield engine
    engine.close()


def request(
    loaded: LoadedModel, name: str = "r", stream: bool = False, seconds: float = 60, **given: Any
) -> EngineRequest:
    parameters = resolve(GenerationParameters(**given), loaded.defaults)
    total = lengths(parameters, prompt=len(PROMPT), prefix=0, context=loaded.context_length)
    return EngineRequest(
        request_id=name,
        prompt_ids=PROMPT,
        parameters=parameters,
        min_length=total.min_length,
        max_length=total.max_length,
        stream=stream,
        deadline=time.monotonic() + seconds,
    )


def run(engine: ReferenceEngine, asked: EngineRequest) -> list[EngineEvent]:
    events: queue.Queue[EngineEvent] = queue.Queue()
    engine.submit(asked, events.put)
    seen = [events.get(timeout=60)]
    while isinstance(seen[-1], NewTokens):
        seen.append(events.get(timeout=60))
    return seen


def sequences(engine: ReferenceEngine, asked: EngineRequest) -> tuple[Sequence, ...]:
    (event,) = run(engine, asked)
    assert isinstance(event, Finished), event
    return event.sequences


def generate(loaded: LoadedModel, **kwargs: Any) -> list[list[int]]:
    """What transformers answers, given the parameters as they are."""
    prompt = torch.tensor([PROMPT])
    with warnings.catch_warnings(action="ignore"):  # that no length was given
        output = loaded.model.generate(prompt, attention_mask=torch.ones_like(prompt), **kwargs)
    rows: list[list[int]] = output[:, len(PROMPT) :].tolist()
    return rows


GREEDY_SETS: list[dict[str, Any]] = [
    {"max_new_tokens": 30},
    {"max_length": 30},
    {},
    {"max_new_tokens": 20, "min_new_tokens": 10},
    {"max_length": 30, "min_length": 20},
    {"max_new_tokens": 30, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 30, "encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    {"max_new_tokens": 20, "bad_words_ids": [[5], [418, 96]], "suppress_tokens": [10, 11]},
    {"max_new_tokens": 20, "sequence_bias": [([418], 5.0), ([5, 6], -3.0)]},
    {"max_new_tokens": 20, "begin_suppress_tokens": [274], "forced_eos_token_id": 643},
    {"max_new_tokens": 20, "exponential_decay_length_penalty": (5, 1.5)},
    {"max_new_tokens": 20, "guidance_scale": 1.5},
    {"max_new_tokens": 20, "prompt_lookup_num_tokens": 3},
    {"max_new_tokens": 20, "renormalize_logits": True, "remove_invalid_values": True},
    {"max_new_tokens": 15, "num_beams": 4},
    {"max_new_tokens": 15, "num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
    {"max_new_tokens": 15, "num_beams": 3, "early_stopping": "never", "no_repeat_ngram_size": 2},
    {"max_new_tokens": 30, "eos_token_id": [5, 418]},
]


@pytest.mark.parametrize("given", GREEDY_SETS, ids=lambda given: ",".join(given) or "nothing")
def test_greedy_and_beams_are_those_of_transformers(
    engine: ReferenceEngine, loaded: LoadedModel, given: dict[str, Any]
) -> None:
    """The engine is given resolved parameters, transformers the raw ones: so the merging is tested too."""
    raw = dict(given)
    if "sequence_bias" in raw:
        raw["sequence_bias"] = [[list(ids), bias] for ids, bias in raw["sequence_bias"]]
    expected = generate(loaded, do_sample=False, **raw)
    ends = set(resolve(GenerationParameters(**given), loaded.defaults).eos_token_ids())
    found = sequences(engine, request(loaded, do_sample=False, **given))
    assert len(found) == len(expected)
    for sequence, row in zip(found, expected, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        assert list(sequence.token_ids) == row[:end]
        assert sequence.finish_reason == ("stop" if row[end - 1] in ends else "length")


@pytest.mark.parametrize("rows", [{"num_beams": 3, "do_sample": False}, {"num_return_sequences": 2, "seed": 1}])
def test_a_negative_prompt_goes_with_every_row(
    engine: ReferenceEngine, loaded: LoadedModel, rows: dict[str, Any]
) -> None:
    given = {"guidance_scale": 2.0, "max_new_tokens": 6, "do_sample": True, **rows}
    without = sequences(engine, request(loaded, **given))
    assert sequences(engine, request(loaded, negative_prompt_ids=[81, 554], **given)) != without


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 10},
        {"top_k": 0, "top_p": 0.8, "temperature": 0.7},
        {"min_p": 0.1, "typical_p": 0.9},
        {"epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "top_h": 0.6},
        {"num_return_sequences": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
)
def test_a_seed_draws_what_transformers_draws(
    engine: ReferenceEngine, loaded: LoadedModel, given: dict[str, Any]
) -> None:
    torch.manual_seed(11)
    expected = generate(loaded, do_sample=True, max_new_tokens=12, **given)
    ends = set(loaded.defaults.eos_token_ids())
    found = sequences(engine, request(loaded, do_sample=True, max_new_tokens=12, seed=11, **given))
    cut = [row[: next((i + 1 for i, t in enumerate(row) if t in ends), len(row))] for row in expected]
    assert [list(s.token_ids) for s in found] == cut


def test_a_seed_leaves_the_global_generator_alone(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    state = torch.get_rng_state()
    sequences(engine, request(loaded, do_sample=True, max_new_tokens=3, seed=1))
    assert torch.equal(torch.get_rng_state(), state)


def test_streamed_tokens_joined_are_the_sequence(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    *tokens, last = run(engine, request(loaded, stream=True, do_sample=False, max_new_tokens=20))
    assert isinstance(last, Finished)
    streamed = [i for event in tokens if isinstance(event, NewTokens) for i in event.token_ids]
    assert len(tokens) > 1
    assert tuple(streamed) == last.sequences[0].token_ids


def test_scores_are_log_probabilities_of_the_tokens(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    (sequence,) = sequences(engine, request(loaded, do_sample=False, max_new_tokens=5, output_scores=True))
    assert sequence.scores is not None
    logits = loaded.model(torch.tensor([PROMPT + sequence.token_ids])).logits[0].log_softmax(-1)
    expected = [logits[len(PROMPT) - 1 + i, token].item() for i, token in enumerate(sequence.token_ids)]
    assert sequence.scores == pytest.approx(expected, abs=1e-4)


def test_stop_strings_end_the_answer(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    (free,) = sequences(engine, request(loaded, do_sample=False, max_new_tokens=20))
    text = str(loaded.tokenizer.decode(list(free.token_ids[:6]))).strip()
    stop = text[-3:]
    (stopped,) = sequences(engine, request(loaded, do_sample=False, max_new_tokens=20, stop_strings=stop))
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) <= 6
    assert stop in loaded.tokenizer.decode(list(stopped.token_ids))


def test_a_request_that_transformers_refuses_fails_alone(
    engine: ReferenceEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("`this` does not go with `that`.\nA second line.")

    with monkeypatch.context() as patched:
        patched.setattr(loaded.model, "generate", refuse)
        (event,) = run(engine, request(loaded))
    assert isinstance(event, Failed)
    assert isinstance(event.error, InvalidRequest)
    assert event.error.message == "`this` does not go with `that`."
    assert sequences(engine, request(loaded, max_new_tokens=2))


def test_a_request_that_breaks_the_model_fails_alone(
    engine: ReferenceEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sequences(engine, request(loaded, do_sample=False, max_new_tokens=4))
    with monkeypatch.context() as patched:
        patched.setattr(loaded.model.model.norm, "forward", lambda hidden: 1 / 0)
        (event,) = run(engine, request(loaded, max_new_tokens=4))
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFailure)
    assert event.error.message == "Generation failed: ZeroDivisionError."
    engine.check_health()
    assert sequences(engine, request(loaded, do_sample=False, max_new_tokens=4)) == expected


def test_scores_beyond_numbers_are_the_requests_fault(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    extreme: dict[str, Any] = {"sequence_bias": [([124], 1e38), ([221], 1e38)], "repetition_penalty": 1e-30}
    (event,) = run(engine, request(loaded, do_sample=True, max_new_tokens=4, **extreme))
    assert isinstance(event, Failed)
    assert isinstance(event.error, InvalidRequest)
    assert event.error.message == "These parameters drive the scores beyond all numbers, to inf or nan."


def test_the_deadline_ends_a_request(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    began = time.monotonic()
    (event,) = run(engine, request(loaded, seconds=0.3, max_new_tokens=2000, eos_token_id=703))
    assert isinstance(event, Failed)
    assert isinstance(event.error, RequestTimeout)
    assert time.monotonic() - began < 2


def long_request(loaded: LoadedModel, name: str) -> EngineRequest:
    return request(loaded, name, max_new_tokens=2000, stream=True, do_sample=True, eos_token_id=703)


def test_abort_frees_the_engine_within_a_token(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    started, events = threading.Event(), []

    def on_event(event: EngineEvent) -> None:
        events.append(event)
        started.set()

    engine.submit(long_request(loaded, "long"), on_event)
    started.wait(10)
    engine.abort("long")
    began = time.monotonic()
    assert sequences(engine, request(loaded, "next", max_new_tokens=2))
    assert time.monotonic() - began < 1
    assert not any(isinstance(event, Finished) for event in events)


def test_a_full_queue_refuses_and_the_waiting_are_answered(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    started = threading.Event()
    engine.submit(long_request(loaded, "running"), lambda event: started.set())
    started.wait(10)
    answers: queue.Queue[EngineEvent] = queue.Queue()
    for name in ("a", "b"):
        engine.submit(request(loaded, name, max_new_tokens=2), answers.put)
    with pytest.raises(Overloaded) as caught:
        engine.submit(request(loaded, "c", max_new_tokens=2), answers.put)
    assert caught.value.message == "2 requests are waiting already, the limit is 2."
    engine.abort("running")
    assert isinstance(answers.get(timeout=10), Finished)
    assert isinstance(answers.get(timeout=10), Finished)


def test_an_aborted_request_leaves_the_queue_at_once(engine: ReferenceEngine, loaded: LoadedModel) -> None:
    started = threading.Event()
    engine.submit(long_request(loaded, "running"), lambda event: started.set())
    started.wait(10)
    answers: queue.Queue[EngineEvent] = queue.Queue()
    for name in ("a", "b"):
        engine.submit(request(loaded, name, max_new_tokens=2), answers.put)
    engine.abort("a")
    engine.submit(request(loaded, "c", max_new_tokens=2), answers.put)
    engine.abort("running")
    assert isinstance(answers.get(timeout=10), Finished)
    assert isinstance(answers.get(timeout=10), Finished)
    time.sleep(0.1)
    assert answers.empty()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_fails_all_it_had(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ReferenceEngine(loaded)
    hold, held = threading.Event(), threading.Event()

    def die(*args: Any, **kwargs: Any) -> None:
        held.set()
        hold.wait(10)
        raise SystemExit  # no Exception: nothing below the thread's own frame catches it

    monkeypatch.setattr(loaded.model, "generate", die)
    answers: queue.Queue[EngineEvent] = queue.Queue()
    engine.submit(request(loaded, "running"), answers.put)
    held.wait(10)
    engine.submit(request(loaded, "waiting"), answers.put)
    hold.set()
    for _ in range(2):
        event = answers.get(timeout=10)
        assert isinstance(event, Failed)
        assert isinstance(event.error, EngineFailure)
    engine._thread.join(10)
    with pytest.raises(EngineFailure, match="The engine's thread is dead"):
        engine.check_health()


def test_closing_fails_what_waits(loaded: LoadedModel) -> None:
    engine = ReferenceEngine(loaded)
    started = threading.Event()
    engine.submit(long_request(loaded, "running"), lambda event: started.set())
    started.wait(10)
    answers: queue.Queue[EngineEvent] = queue.Queue()
    engine.submit(request(loaded, "waiting"), answers.put)
    engine.close()
    event = answers.get(timeout=10)
    assert isinstance(event, Failed)
    assert event.error.message == "The engine stopped before the request was answered."
    with pytest.raises(EngineFailure, match="not running"):
        engine.submit(request(loaded, "late"), answers.put)
    with pytest.raises(EngineFailure, match="The engine's thread is dead"):
        engine.check_health()


def test_a_hung_step_is_unhealthy(
    engine: ReferenceEngine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, held = threading.Event(), threading.Event()
    forward = loaded.model.model.norm.forward

    def hang(hidden: torch.Tensor) -> torch.Tensor:
        held.set()
        hold.wait(30)
        result: torch.Tensor = forward(hidden)
        return result

    monkeypatch.setattr(loaded.model.model.norm, "forward", hang)
    monkeypatch.setattr(reference, "SECONDS_STUCK", 0.2)
    engine.submit(request(loaded, max_new_tokens=1), lambda event: None)
    held.wait(10)
    time.sleep(0.3)
    with pytest.raises(EngineFailure, match="in one step for"):
        engine.check_health()
    hold.set()
