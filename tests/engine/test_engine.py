"""The engine: transformers' answers whatever else runs, and nobody else's trouble."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from phi3_serve.core.engine_event import Finished, NewTokens
from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.usage import Timings
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.engine_core import EngineCore, StepStats
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.sampling import processors, sampler
from phi3_serve.engine.sampling.drawing import draw
from phi3_serve.engine.sampling.processors import Processor, ScoreRow, ScoreSettings
from phi3_serve.engine.sampling.strategies.independent_sequences import IndependentSequences
from phi3_serve.errors import EngineFailure, InvalidRequest, ModelUnavailable, Overloaded, RequestTimeout
from tests.engine.asking import PROMPT, Answer, request
from tests.engine.lacks_of_memory import LACKS_OF_MEMORY
from tests.support import ENDLESS

SIZES = EngineSizes(num_blocks=600, token_budget=64, max_rows=16)


@pytest.fixture
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    """An engine that has to give every block back in the end."""
    engine = Engine(loaded, queue=QueueLimits(2), sizes=SIZES)
    yield engine
    engine.close()
    engine.blocks.check_integrity([])
    assert engine.blocks.num_available == SIZES.num_blocks


def test_the_engine_says_what_it_runs_on(engine: Engine) -> None:
    info = engine.info
    assert (info.dtype, info.compute_capability, info.cache_tokens) == ("float32", None, 9600)
    config = engine._core.runner.decoder.config
    of_token = (
        2 * config.num_hidden_layers * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    )
    assert info.cache_bytes == 9600 * of_token * 4
    assert info.kernels.startswith("cpu (")
    assert info.replaced_kernels == {}
    assert info.device


@pytest.mark.parametrize(("given", "shown"), [("auto", "float32"), ("int8", "int8")])
def test_the_engine_says_what_its_cache_takes(loaded: LoadedModel, given: KvCacheDtype, shown: str) -> None:
    engine = Engine(loaded, sizes=replace(SIZES, kv_cache_dtype=given))
    cache = engine._core.runner._cache
    num_bytes = cache.values.nbytes + (0 if cache.scales is None else cache.scales.nbytes)
    assert (engine.info.kv_cache_dtype, engine.info.cache_bytes) == (shown, num_bytes)
    engine.close()


def long_request(loaded: LoadedModel, name: str, **given: Any) -> EngineRequest:
    return request(loaded, name, **{"max_new_tokens": 2000, "stream": True, **ENDLESS, **given})


def started(engine: Engine, asked: EngineRequest) -> Answer:
    """The answer to a request that has got its first token."""
    answer = Answer(engine, asked)
    event = answer.events.get(timeout=20)
    assert isinstance(event, NewTokens), event
    return answer


def with_memory_for(engine: Engine, num_tokens: int, error: Exception = LACKS_OF_MEMORY[0]) -> list[int]:
    """Let larger steps fail with ``error``; the tokens of each step that was tried."""
    tried: list[int] = []
    runner: Any = engine._core.runner
    run = runner.run

    def run_or_fail(chunks: Any) -> Any:
        tried.append(sum(chunk.num_tokens for chunk in chunks))
        if tried[-1] > num_tokens:
            raise error.with_traceback(None)
        return run(chunks)

    runner.run = run_or_fail
    return tried


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_a_step_without_memory_is_run_in_smaller_ones(loaded: LoadedModel, error: Exception) -> None:
    sizes = replace(SIZES, token_budget=512)
    asked = [request(loaded, f"{n}", prompt=(n + 1, *PROMPT * 30), do_sample=False, **ENDLESS) for n in range(4)]
    usual = Engine(loaded, sizes=sizes)
    expected = [Answer(usual, made).ids() for made in asked]
    usual.close()
    engine = Engine(loaded, sizes=sizes)
    tried = with_memory_for(engine, 150, error)
    answers = [Answer(engine, made) for made in asked]
    assert [answer.ids() for answer in answers] == expected
    assert 150 < max(tried) <= 512
    assert engine._core.scheduler.budget.limit <= 150
    engine.close()
    engine.blocks.check_integrity([])


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_a_request_without_memory_fails_alone(engine: Engine, loaded: LoadedModel, error: Exception) -> None:
    asked = [long_request(loaded, f"{number}", max_new_tokens=50, do_sample=False) for number in range(3)]
    expected = [Answer(engine, made).ids() for made in asked]
    with_memory_for(engine, 3 * BLOCK_SIZE, error)  # the small ones compute at most one block each again
    small = [started(engine, made) for made in asked]
    (event,) = Answer(engine, request(loaded, "large", prompt=PROMPT * 16)).all()
    assert isinstance(event, Failed)
    assert isinstance(event.error, ModelUnavailable)
    assert event.error.retry_after_s
    assert [answer.ids() for answer in small] == expected


def test_an_error_of_the_device_that_looks_like_a_lack_of_memory_ends_the_engine(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cuBLAS says of a full memory it says of a device that has failed, too."""
    broken = torch.AcceleratorError("CUDA error: device-side assert triggered")
    breakdowns: list[Exception] = []
    engine = Engine(loaded, sizes=SIZES, on_breakdown=breakdowns.append)

    def check_device() -> None:
        raise broken

    monkeypatch.setattr(engine._core.runner, "check_device", check_device)
    not_initialized = "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"
    with_memory_for(engine, 0, RuntimeError(not_initialized))
    event = Answer(engine, request(loaded)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFailure)
    engine._thread.join(20)
    assert breakdowns == [broken]


def test_tokens_without_memory_are_chosen_for_one_request_after_another(
    engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt keeps no memory, or there would be less of it for the next ones."""
    tried: list[int] = []
    scores_of_failed: list[weakref.ref[torch.Tensor]] = []

    def draw_or_fail(scores: torch.Tensor, rows: Sequence[ScoreSettings]) -> list[int]:
        assert all(scores() is None for scores in scores_of_failed)
        tried.append(len(rows))
        if len(rows) > 1:
            scores_of_failed.append(weakref.ref(scores))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return draw(scores, rows)

    monkeypatch.setattr(sampler, "draw", draw_or_fail)
    sampled = {"do_sample": True, "top_k": 5, "max_new_tokens": 30, **ENDLESS}
    answers = [Answer(engine, request(loaded, f"{number}", **sampled)) for number in range(3)]
    assert all(isinstance(answer.last(), Finished) for answer in answers)
    assert max(tried) > 1


@pytest.mark.parametrize("error", LACKS_OF_MEMORY, ids=str)
def test_a_request_whose_tokens_have_no_memory_fails_alone(
    engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def draw_or_fail(scores: torch.Tensor, rows: Sequence[ScoreSettings]) -> list[int]:
        if any(row.parameters.top_k == 7 for row in rows):
            raise error.with_traceback(None)
        return draw(scores, rows)

    monkeypatch.setattr(sampler, "draw", draw_or_fail)
    sampled = {"do_sample": True, "max_new_tokens": 30, **ENDLESS}
    answers = [Answer(engine, request(loaded, f"{k}", top_k=k, **sampled)) for k in (5, 7, 9)]
    assert isinstance(answers[0].last(), Finished)
    assert isinstance(answers[2].last(), Finished)
    failed = answers[1].last()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ModelUnavailable)
    assert failed.error.retry_after_s


@pytest.mark.parametrize(
    ("prompt", "given", "param"),
    [
        ((5, 704), {}, "prompt"),
        ((-1, 5), {}, "prompt"),
        (PROMPT, {"bad_words_ids": [[1, 704]]}, "bad_words_ids"),
        (PROMPT, {"sequence_bias": [([704, 1], 2.0)]}, "sequence_bias"),
        (PROMPT, {"eos_token_id": [5, 704]}, "eos_token_id"),
        (PROMPT, {"suppress_tokens": [-1]}, "suppress_tokens"),
        (PROMPT, {"begin_suppress_tokens": [704]}, "begin_suppress_tokens"),
        (PROMPT, {"forced_bos_token_id": 704}, "forced_bos_token_id"),
        (PROMPT, {"forced_eos_token_id": [704]}, "forced_eos_token_id"),
        (PROMPT, {"pad_token_id": 704}, "pad_token_id"),
        (PROMPT, {"guidance_scale": 2.0, "negative_prompt_ids": [704]}, "negative_prompt_ids"),
    ],
)
def test_token_ids_outside_the_vocabulary_never_reach_a_kernel(
    engine: Engine, loaded: LoadedModel, prompt: tuple[int, ...], given: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest, match="this model's ids go from 0 to 703") as caught:
        Answer(engine, request(loaded, prompt=prompt, **given))
    assert caught.value.param == param
    assert engine.load.num_waiting == engine.load.num_running == 0


def test_the_times_of_a_request_add_up(engine: Engine, loaded: LoadedModel) -> None:
    def timed(name: str, num_tokens: int, prompt: tuple[int, ...] = PROMPT) -> tuple[Timings, float]:
        began = time.monotonic()
        asked = request(loaded, name, prompt=prompt, do_sample=False, max_new_tokens=num_tokens, **ENDLESS)
        last = Answer(engine, asked).last()
        assert isinstance(last, Finished)
        assert last.timings is not None
        return last.timings, time.monotonic() - began

    timed("warm", 2)
    one, _ = timed("one", 1)
    assert one.answer_s == pytest.approx(0, abs=0.01)  # its first token is its last
    many, took_s = timed("many", 200, (7, *PROMPT))
    assert min(many.queue_s, many.prompt_s, many.answer_s) >= 0
    assert many.answer_s > 20 * many.prompt_s
    assert 0.5 * took_s < many.queue_s + many.prompt_s + many.answer_s < took_s


def test_a_request_that_waits_has_not_begun(loaded: LoadedModel) -> None:
    engine = Engine(loaded, sizes=replace(SIZES, max_rows=1))
    first = Answer(engine, request(loaded, "first", do_sample=False, max_new_tokens=200, **ENDLESS))
    second = Answer(engine, request(loaded, "second", do_sample=False, max_new_tokens=2, **ENDLESS))
    ends = [answer.last() for answer in (first, second)]
    engine.close()
    timings = [end.timings for end in ends if isinstance(end, Finished) and end.timings is not None]
    assert len(timings) == 2
    assert timings[1].queue_s > 0.5 * timings[0].answer_s > timings[1].prompt_s + timings[1].answer_s


def test_streamed_tokens_joined_are_the_sequence(engine: Engine, loaded: LoadedModel) -> None:
    *tokens, last = Answer(engine, request(loaded, stream=True, do_sample=False, max_new_tokens=20)).all()
    assert isinstance(last, Finished)
    streamed = [i for event in tokens if isinstance(event, NewTokens) for i in event.token_ids]
    assert len(tokens) > 1
    assert tuple(streamed) == last.sequences[0].token_ids


def test_scores_are_log_probabilities_of_the_tokens(engine: Engine, loaded: LoadedModel) -> None:
    (sequence,) = Answer(engine, request(loaded, do_sample=False, max_new_tokens=5, output_scores=True)).sequences()
    assert sequence.scores is not None
    logits = loaded.model(torch.tensor([PROMPT + sequence.token_ids])).logits[0].log_softmax(-1)
    expected = [logits[len(PROMPT) - 1 + i, token].item() for i, token in enumerate(sequence.token_ids)]
    assert sequence.scores == pytest.approx(expected, abs=1e-4)


def test_stop_strings_end_the_answer(engine: Engine, loaded: LoadedModel) -> None:
    (free,) = Answer(engine, request(loaded, do_sample=False, max_new_tokens=20)).sequences()
    stop = str(loaded.tokenizer.decode(list(free.token_ids[:6]))).strip()[-3:]
    (stopped,) = Answer(engine, request(loaded, do_sample=False, max_new_tokens=20, stop_strings=stop)).sequences()
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) <= 6
    assert stop in loaded.tokenizer.decode(list(stopped.token_ids))


def test_max_time_ends_the_answer_as_it_is(engine: Engine, loaded: LoadedModel) -> None:
    (sequence,) = Answer(engine, long_request(loaded, "r", do_sample=False, max_time=0.1)).sequences()
    assert sequence.finish_reason == "length"
    assert 1 < len(sequence.token_ids) < 2000


def test_lookup_takes_fewer_steps_to_the_same_answer(loaded: LoadedModel) -> None:
    """A prompt that repeats itself, and a model made to repeat: the draft is right nearly always."""
    answers, steps = [], []
    for drafted in (None, 5):
        stats: list[StepStats] = []
        engine = Engine(loaded, sizes=SIZES, on_step=stats.append)
        bias = [([389, 512], 50.0), ([512, 380], 50.0), ([380, 389], 50.0)]
        asked = request(
            loaded,
            prompt=(389, 512, 380) * 3,
            do_sample=False,
            max_new_tokens=30,
            sequence_bias=bias,
            prompt_lookup_num_tokens=drafted,
        )
        answers.append(Answer(engine, asked).ids())
        engine.close()
        steps.append(len(stats))
    assert answers[0] == answers[1]
    assert steps[1] <= steps[0] / 3


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 3},
        {"do_sample": True, "prompt_lookup_num_tokens": 4},
    ],
)
def test_a_seed_gives_the_same_alone_and_among_32(loaded: LoadedModel, given: dict[str, Any]) -> None:
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=200, token_budget=64, max_rows=64))
    asked = {"seed": 5, "max_new_tokens": 20, **given}
    alone = Answer(engine, request(loaded, **asked)).ids()
    company = [
        Answer(engine, request(loaded, f"c{i}", prompt=(389 + i,) * (i + 1), do_sample=True, max_new_tokens=30))
        for i in range(32)
    ]
    among = Answer(engine, request(loaded, **asked)).ids()
    for answer in company:
        answer.sequences()
    engine.close()
    assert among == alone


def neighbours(engine: Engine, loaded: LoadedModel) -> list[Answer]:
    """Requests of several kinds that go on while something happens beside them."""
    kinds: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}, {"repetition_penalty": 1.3}]
    return [
        Answer(engine, request(loaded, f"n{i}", **{"do_sample": False, "max_new_tokens": 60, **kind}))
        for i, kind in enumerate(kinds)
    ]


def test_a_request_that_fails_in_a_processor_fails_alone(
    engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [answer.ids() for answer in neighbours(engine, loaded)]
    is_requested, apply = processors._PROCESSORS["suppress"]

    def fail(scores: torch.Tensor, indices: list[int], rows: list[ScoreRow], logits: torch.Tensor) -> None:
        if any(len(row.history) > len(PROMPT) + 5 for row in rows):
            raise ZeroDivisionError
        apply(scores, indices, rows, logits)

    monkeypatch.setitem(processors._PROCESSORS, "suppress", Processor(is_requested, fail))
    beside = neighbours(engine, loaded)
    event = Answer(engine, request(loaded, "bad", max_new_tokens=60, suppress_tokens=[1])).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFailure)
    assert event.error.message == "Generation failed: ZeroDivisionError."
    assert [answer.ids() for answer in beside] == expected


@pytest.mark.parametrize("place", ["in a processor", "in the strategy", "as another error"])
def test_a_device_that_fails_while_tokens_are_chosen_ends_the_engine(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The device can compute nothing more, so the replica must not go on and report health."""
    broken: Exception = torch.AcceleratorError("CUDA error: device-side assert triggered")
    breakdowns: list[Exception] = []
    engine = Engine(loaded, sizes=SIZES, on_breakdown=breakdowns.append)
    all_are_submitted = threading.Event()  # an engine that has ended takes no request

    def fail(*given: Any) -> Any:
        assert all_are_submitted.wait(20)
        # libraries report such an error as any RuntimeError; then the device itself is asked
        raise RuntimeError("cuBLAS error") if place == "as another error" else broken

    def check_device() -> None:
        if place == "as another error":
            raise broken

    monkeypatch.setattr(engine._core.runner, "check_device", check_device)
    if place == "in the strategy":
        monkeypatch.setattr(IndependentSequences, "advance", fail)
    else:
        is_requested, _ = processors._PROCESSORS["suppress"]
        monkeypatch.setitem(processors._PROCESSORS, "suppress", Processor(is_requested, fail))
    answers = [Answer(engine, request(loaded, name, max_new_tokens=60, suppress_tokens=[1])) for name in "ab"]
    all_are_submitted.set()
    for answer in answers:
        event = answer.last()
        assert isinstance(event, Failed)
        assert isinstance(event.error, EngineFailure)
    engine._thread.join(20)
    assert breakdowns == [broken]
    with pytest.raises(EngineFailure):
        engine.check_health()
    with pytest.raises(EngineFailure):
        Answer(engine, request(loaded))


def test_scores_beyond_numbers_are_the_requests_fault(engine: Engine, loaded: LoadedModel) -> None:
    expected = [answer.ids() for answer in neighbours(engine, loaded)]
    extreme: dict[str, Any] = {"sequence_bias": [([124], 1e38), ([221], 1e38)], "repetition_penalty": 1e-30}
    beside = neighbours(engine, loaded)
    event = Answer(engine, request(loaded, do_sample=True, max_new_tokens=4, **extreme)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, InvalidRequest)
    assert event.error.message.startswith("These parameters make the scores infinite or not a number. ")
    assert set(extreme) <= set(event.error.message.split("`"))
    assert [answer.ids() for answer in beside] == expected


@pytest.mark.parametrize("given", [{}, {"num_beams": 4}, {"num_return_sequences": 3, "do_sample": True}])
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.15])
def test_an_abort_in_any_phase_leaves_the_neighbours_alone(
    engine: Engine, loaded: LoadedModel, given: dict[str, Any], after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of 1,500 tokens takes 24 steps to read, so the first two aborts are amid the prompt."""
    run = engine._core.runner.run

    def take_two_milliseconds(chunks: Any) -> torch.Tensor:
        time.sleep(0.002)
        return run(chunks)

    monkeypatch.setattr(engine._core.runner, "run", take_two_milliseconds)
    expected = [answer.ids() for answer in neighbours(engine, loaded)]
    beside = neighbours(engine, loaded)
    gone = Answer(
        engine, request(loaded, "gone", prompt=(389, 512, 380) * 500, max_new_tokens=400, eos_token_id=703, **given)
    )
    time.sleep(after_s)
    engine.abort("gone")
    assert [answer.ids() for answer in beside] == expected
    assert gone.events.empty()


def test_a_forward_pass_that_fails_ends_its_requests_only(
    engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Answer(engine, request(loaded, do_sample=False, max_new_tokens=4)).ids()
    with monkeypatch.context() as patched:
        patched.setattr(engine._core.runner, "run", lambda chunks: 1 / 0)
        event = Answer(engine, request(loaded, max_new_tokens=4)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFailure)
    assert event.error.message == "Generation failed: ZeroDivisionError."
    engine.check_health()
    assert Answer(engine, request(loaded, do_sample=False, max_new_tokens=4)).ids() == expected


def test_the_deadline_ends_a_request(engine: Engine, loaded: LoadedModel) -> None:
    began = time.monotonic()
    event = Answer(engine, request(loaded, seconds=0.1, max_new_tokens=2000, eos_token_id=703)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, RequestTimeout)
    assert time.monotonic() - began < 2


def test_the_deadline_holds_in_the_queue(loaded: LoadedModel) -> None:
    """A request that still waits when its time is up is not left waiting for the one before it."""
    engine = one_at_a_time(loaded)
    started(engine, long_request(loaded, "running"))
    began = time.monotonic()
    event = Answer(engine, request(loaded, "late", seconds=0.1)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, RequestTimeout)
    assert 0.1 <= time.monotonic() - began < 1
    engine.close()


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        (
            {"prompt": PROMPT * 340, "max_new_tokens": 3, "do_sample": True, "num_return_sequences": 64},
            "prompt",
            "The prompt has 1700 tokens, and 64 sequences do not fit into the key-value cache, which holds 1600 tokens.",
        ),
        (
            {"max_new_tokens": 398, "do_sample": True, "num_return_sequences": 8},
            "max_new_tokens",
            "`max_new_tokens` is 398, but the key-value cache holds 1600 tokens. With 8 sequences after a prompt of 5 "
            "tokens, the most allowed is 188.",
        ),
        (
            {"max_length": 1700},
            "max_length",
            "`max_length` is 1700, but the key-value cache holds 1600 tokens. With 1 sequence after a prompt of 5 "
            "tokens, the most allowed is 1601.",
        ),
        (
            {"max_new_tokens": 800, "num_beams": 2, "guidance_scale": 2.0},
            "max_new_tokens",
            "`max_new_tokens` is 800, but the key-value cache holds 1600 tokens. With 2 beams with guidance after a "
            "prompt of 5 tokens, the most allowed is 396.",
        ),
    ],
)
def test_what_the_cache_cannot_hold_is_refused_when_it_comes(
    loaded: LoadedModel, given: dict[str, Any], param: str, message: str
) -> None:
    steps: list[StepStats] = []
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=100, token_budget=64, max_rows=64), on_step=steps.append)
    with pytest.raises(InvalidRequest) as caught:
        Answer(engine, request(loaded, "large", **given))
    engine.close()
    assert (caught.value.param, caught.value.message) == (param, message)
    assert not steps


@pytest.mark.parametrize(("num_sequences", "length"), [(1, 321), (3, 97)])
def test_who_asks_for_the_whole_context_gets_what_the_cache_holds(
    loaded: LoadedModel, num_sequences: int, length: int
) -> None:
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=20, token_budget=64, max_rows=16))
    asked = request(loaded, max_length=10**6, num_return_sequences=num_sequences, do_sample=True, **ENDLESS)
    sequences = Answer(engine, asked).sequences()
    engine.close()
    assert [len(PROMPT) + len(sequence.token_ids) for sequence in sequences] == [length] * num_sequences
    assert {sequence.finish_reason for sequence in sequences} == {"length"}


@pytest.mark.parametrize(
    "given",
    [
        {"max_new_tokens": 1},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"guidance_scale": 1.5},
        {"prompt_lookup_num_tokens": 4},
    ],
)
def test_every_request_leaves_its_prompt_in_the_prefix_cache(loaded: LoadedModel, given: dict[str, Any]) -> None:
    steps: list[StepStats] = []
    engine = Engine(loaded, sizes=SIZES, on_step=steps.append)
    long_prompt = tuple(3 + i * i % 600 for i in range(333))
    Answer(engine, request(loaded, prompt=long_prompt, **{"do_sample": False, "max_new_tokens": 3, **given})).last()
    num_before = len(steps)
    Answer(engine, request(loaded, prompt=long_prompt, do_sample=False, max_new_tokens=1)).last()
    engine.close()
    assert sum(step.num_tokens for step in steps[num_before:]) == 333 % 16


def test_long_drafts_take_nothing_from_other_requests(loaded: LoadedModel) -> None:
    """Each drafts 64 tokens, and the budget is 66: of three requests each gets one token a step, and a prompt is read."""
    core = EngineCore(loaded, EngineSizes(num_blocks=600, token_budget=66, max_rows=16))
    repeating = (389, 512, 380) * 40
    bias = [([389, 512], 50.0), ([512, 380], 50.0), ([380, 389], 50.0)]
    drafted = {"prompt_lookup_num_tokens": 64, "sequence_bias": bias}
    kinds: list[dict[str, Any]] = [drafted, drafted, {}]
    drafting = [
        core.generation(request(loaded, prompt=repeating[n:], max_new_tokens=1900, **ENDLESS, **kind), lambda _: None)
        for n, kind in enumerate(kinds)
    ]
    for generation in drafting:
        core.scheduler.add(generation)
    while any(generation.num_pending > 1 for generation in drafting):
        core.run(core.schedule())
    lengths = [len(generation.strategy.rows[0]) for generation in drafting]
    late = core.generation(request(loaded, prompt=tuple(range(3, 303)), max_new_tokens=2), lambda _: None)
    core.scheduler.add(late)
    num_tokens = [core.run(core.schedule()).stats.num_tokens for _ in range(12)]
    grown = [len(g.strategy.rows[0]) - length for g, length in zip(drafting, lengths, strict=True)]
    assert min(grown[:2]) > 60  # their drafts are right
    assert grown[2] == 12
    assert late.is_removed
    assert max(num_tokens) == 66


def one_at_a_time(loaded: LoadedModel) -> Engine:
    return Engine(loaded, queue=QueueLimits(2), sizes=EngineSizes(num_blocks=600, token_budget=64, max_rows=1))


def test_abort_frees_the_engine_within_a_step(loaded: LoadedModel) -> None:
    engine = one_at_a_time(loaded)
    gone = started(engine, long_request(loaded, "long"))
    engine.abort("long")
    began = time.monotonic()
    assert Answer(engine, request(loaded, "next", max_new_tokens=2)).sequences()
    assert time.monotonic() - began < 1
    engine.close()
    assert all(isinstance(event, NewTokens) for event in gone.events.queue)


def test_a_full_queue_refuses_and_the_waiting_are_answered(loaded: LoadedModel) -> None:
    engine = one_at_a_time(loaded)
    started(engine, long_request(loaded, "running"))
    waiting = [Answer(engine, request(loaded, name, max_new_tokens=2)) for name in ("a", "b")]
    with pytest.raises(Overloaded) as caught:
        Answer(engine, request(loaded, "c", max_new_tokens=2))
    assert caught.value.message == "2 requests are waiting already; limits.max_waiting_requests is 2."
    engine.abort("running")
    for answer in waiting:
        answer.sequences()
    engine.close()


def test_a_queue_full_of_tokens_refuses_however_few_the_requests(loaded: LoadedModel) -> None:
    engine = one_at_a_time(loaded)
    engine.queue = QueueLimits(requests=100, tokens=300)
    started(engine, long_request(loaded, "running"))
    long_prompt = (389, 512) * 100
    first = Answer(engine, request(loaded, "a", prompt=long_prompt, max_new_tokens=2))
    load = engine.load
    assert (load.num_running, load.num_waiting) == (1, 1)
    assert 0 < load.num_blocks_used < load.num_blocks == 600
    with pytest.raises(
        Overloaded, match=r"Prompts of \d+ tokens are waiting already; limits\.max_waiting_tokens is 300\."
    ):
        Answer(engine, request(loaded, "b", prompt=long_prompt, max_new_tokens=2))
    short = Answer(engine, request(loaded, "c", prompt=(389,), max_new_tokens=2))
    engine.abort("running")
    for answer in (first, short):
        answer.sequences()
    engine.close()
    assert engine.load.num_blocks_used == 0


def test_a_request_that_is_not_begun_in_time_is_refused(loaded: LoadedModel) -> None:
    engine = one_at_a_time(loaded)
    running = started(engine, replace(long_request(loaded, "running"), begin_by=time.monotonic() + 0.1))
    began = time.monotonic()
    event = Answer(engine, replace(request(loaded, "late"), begin_by=began + 0.2)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, Overloaded)
    assert event.error.message == "The request waited in the queue for longer than limits.queue_timeout_s."
    assert 0.2 <= time.monotonic() - began < 5
    engine.abort("running")
    engine.close()
    assert all(isinstance(event, NewTokens) for event in running.events.queue)


@pytest.mark.parametrize("stream", [True, False])
def test_a_listener_that_fails_loses_its_own_request_only(engine: Engine, loaded: LoadedModel, stream: bool) -> None:
    expected = [answer.ids() for answer in neighbours(engine, loaded)]
    called = threading.Event()

    def closed(_: object) -> None:
        called.set()
        raise RuntimeError("Event loop is closed")

    beside = neighbours(engine, loaded)
    engine.submit(request(loaded, "deaf", do_sample=False, max_new_tokens=5, stream=stream), closed)
    assert called.wait(20)
    assert [answer.ids() for answer in beside] == expected
    engine.check_health()


def test_an_aborted_request_leaves_the_queue_at_once(loaded: LoadedModel) -> None:
    engine = one_at_a_time(loaded)
    started(engine, long_request(loaded, "running"))
    gone, stays = (Answer(engine, request(loaded, name, max_new_tokens=2)) for name in ("a", "b"))
    engine.abort("a")
    late = Answer(engine, request(loaded, "c", max_new_tokens=2))
    engine.abort("running")
    for answer in (stays, late):
        answer.sequences()
    engine.close()
    assert gone.events.empty()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_fails_all_it_had(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = one_at_a_time(loaded)
    hold, held = threading.Event(), threading.Event()

    def die(*args: Any, **kwargs: Any) -> None:
        held.set()
        hold.wait(10)
        raise SystemExit  # no Exception: nothing below the thread's own frame catches it

    monkeypatch.setattr(engine._core.runner, "run", die)
    running = Answer(engine, request(loaded, "running"))
    held.wait(10)
    waiting = Answer(engine, request(loaded, "waiting"))
    hold.set()
    for answer in (running, waiting):
        event = answer.last()
        assert isinstance(event, Failed)
        assert isinstance(event.error, EngineFailure)
    engine._thread.join(10)
    with pytest.raises(EngineFailure, match="The engine's thread is dead"):
        engine.check_health()


def test_closing_fails_what_waits(loaded: LoadedModel) -> None:
    engine = one_at_a_time(loaded)
    started(engine, long_request(loaded, "running"))
    waiting = Answer(engine, request(loaded, "waiting"))
    engine.close()
    event = waiting.last()
    assert isinstance(event, Failed)
    assert event.error.message == "The engine stopped before the request was answered."
    with pytest.raises(EngineFailure, match="not running"):
        Answer(engine, request(loaded, "late"))
    with pytest.raises(EngineFailure, match="The engine's thread is dead"):
        engine.check_health()


def test_a_hung_step_is_unhealthy(engine: Engine, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, held = threading.Event(), threading.Event()
    run = engine._core.runner.run

    def hang(chunks: Any) -> torch.Tensor:
        held.set()
        hold.wait(30)
        return run(chunks)

    monkeypatch.setattr(engine._core.runner, "run", hang)
    monkeypatch.setattr(engine, "_stuck_after_s", 0.2)
    answer = Answer(engine, request(loaded, max_new_tokens=1))
    held.wait(10)
    time.sleep(0.3)
    with pytest.raises(EngineFailure, match="in one step for"):
        engine.check_health()
    hold.set()
    answer.sequences()


def test_the_engine_forgets_what_it_has_answered(loaded: LoadedModel) -> None:
    engine = Engine(loaded, queue=QueueLimits(1000), sizes=SIZES)
    for answer in [Answer(engine, request(loaded, f"forget{i}", max_new_tokens=3)) for i in range(300)]:
        answer.sequences()
    engine.close()  # the last step may still be in its last line
    gc.collect()
    of_engine = [thing for thing in gc.get_objects() if type(thing) is Generation]
    assert not [g for g in of_engine if g.request.request_id.startswith("forget")]
