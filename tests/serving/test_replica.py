"""The replica in this process, without Ray: what it does beside the wire format, and that its loop stays free."""

import asyncio
import threading
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Begun, Delta, Done, Event, Failed, Queued
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.errors import (
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    Phi3ServeError,
    RequestTimeout,
)
from phi3_serve.parameter_defaults import CHAT_DEFAULTS
from phi3_serve.parameters import GenerationParameters
from phi3_serve.serving import replica as module
from phi3_serve.serving import text_events
from phi3_serve.serving.encoding_threads import LONG_CHARACTERS
from phi3_serve.serving.replica import LAST_REPORTS_S, Replica
from tests.support import ENDLESS, engine_of, local_replica, tokenizer_of

PROMPT = "<|user|> How to explain Internet for a medieval knight?<|end|><|assistant|>"


def request(
    text: str = PROMPT, stream: bool = False, timeout_s: float = 60, name: str = "r", **given: Any
) -> GenerationRequest:
    return GenerationRequest(
        request_id=name,
        model="tested",
        prompt=RawPrompt(text),
        parameters=GenerationParameters(**given),
        api_defaults=CHAT_DEFAULTS,
        stream=stream,
        options=RequestOptions(timeout_s=timeout_s),
    )


def run(replica: Replica, asked: GenerationRequest) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in replica.generate(asked)]

    return asyncio.run(collect())


def test_a_plain_request_has_one_event(replica: Replica) -> None:
    (event,) = run(replica, request(max_new_tokens=5))
    assert isinstance(event, Done)
    assert event.usage.prompt_tokens == 18


def test_a_stream_has_deltas_and_then_the_whole(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    # a token takes so long that the loop can send the first before the next ones are there
    monkeypatch.setattr(engine_of(replica), "_on_step", lambda step: time.sleep(0.003))
    *deltas, last = run(replica, request(stream=True, max_new_tokens=300, do_sample=False, **ENDLESS))
    assert isinstance(last, Done)
    assert "".join(d.text for d in deltas if isinstance(d, Delta)) == last.completions[0].text
    # coalesced: many tokens a message, the first one at once
    assert 2 < len(deltas) < 150
    assert isinstance(deltas[0], Delta)
    assert len(deltas[0].text) < 12


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_beams": 4},
        {"num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 4, "do_sample": False},
        {"guidance_scale": 1.5},
    ],
)
def test_the_deadline_holds_in_every_way_of_decoding(replica: Replica, given: dict[str, Any]) -> None:
    began = time.monotonic()
    (event,) = run(replica, request(timeout_s=0.1, max_new_tokens=2000, **{**ENDLESS, **given}))
    assert isinstance(event, Failed), given
    assert isinstance(event.error, RequestTimeout)
    assert time.monotonic() - began < 3


def test_a_refusal_is_an_event(replica: Replica) -> None:
    (event,) = run(replica, request(text=""))
    assert isinstance(event, Failed)
    assert isinstance(event.error, InvalidRequest)
    assert event.error.message == "The prompt holds no token."


@pytest.mark.thorough
def test_nothing_blocks_the_event_loop(replica: Replica) -> None:
    """While a megabyte is encoded and a long answer is generated, the loop goes on turning."""

    async def longest_pause() -> float:
        longest, running = 0.0, True

        async def tick() -> None:
            nonlocal longest
            while running:
                began = time.monotonic()
                await asyncio.sleep(0.005)
                longest = max(longest, time.monotonic() - began)

        ticker = asyncio.create_task(tick())
        await asyncio.sleep(0.02)  # the first tick is under way
        asked = [request(text="knight " * 150_000), request(max_new_tokens=2000, **ENDLESS)]
        began = time.monotonic()
        for one in asked:
            async for _ in replica.generate(one):
                pass
        assert time.monotonic() - began > 0.5
        running = False
        await ticker
        return longest

    assert asyncio.run(longest_pause()) < 0.3


def test_a_request_is_submitted_beside_the_event_loop(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of 120,000 tokens takes milliseconds to submit, and bans over it longer."""
    threads: list[int] = []
    submit = engine_of(replica).submit

    def note_the_thread(*given: Any) -> None:
        threads.append(threading.get_ident())
        submit(*given)

    monkeypatch.setattr(engine_of(replica), "submit", note_the_thread)
    (event,) = run(replica, request(max_new_tokens=3))
    assert isinstance(event, Done)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


def test_a_client_that_leaves_while_its_request_is_submitted(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    is_submitting, may_submit, is_submitted = threading.Event(), threading.Event(), threading.Event()
    submit = engine_of(replica).submit

    def submit_late(*given: Any) -> None:
        is_submitting.set()
        may_submit.wait(20)
        submit(*given)
        is_submitted.set()

    async def leave_early() -> None:
        asking = asyncio.create_task(anext(replica.generate(request(max_new_tokens=2000, **ENDLESS))))
        await asyncio.to_thread(is_submitting.wait, 20)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert engine_of(replica).load.num_running + engine_of(replica).load.num_waiting == 0
        may_submit.set()
        assert await asyncio.to_thread(is_submitted.wait, 20)
        await asyncio.sleep(0.05)

    monkeypatch.setattr(engine_of(replica), "submit", submit_late)
    asyncio.run(leave_early())
    assert engine_of(replica).load.num_running + engine_of(replica).load.num_waiting == 0


def test_a_request_that_waits_says_so_and_says_when_it_begins(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever runs in the moment of a death has said nothing, or that it has begun."""
    engine: Any = engine_of(replica)
    run_step = engine._core.runner.run
    is_in_step, may_go_on = threading.Event(), threading.Event()

    def run_when_told(chunks: Any) -> Any:
        is_in_step.set()
        may_go_on.wait(20)
        return run_step(chunks)

    async def collect(asked: GenerationRequest, seen: list[Event]) -> None:
        async for event in replica.generate(asked):
            seen.append(event)

    async def story() -> None:
        running: list[Event] = []
        waiting: list[Event] = []
        first = asyncio.create_task(collect(request(max_new_tokens=3), running))
        await asyncio.to_thread(is_in_step.wait, 20)
        second = asyncio.create_task(collect(request(max_new_tokens=3, name="second"), waiting))
        await asyncio.sleep(0.3)
        assert running == []
        assert waiting == [Queued()]
        is_in_step.clear()
        may_go_on.set()
        await asyncio.gather(first, second)
        assert [type(event) for event in running] == [Done]
        assert [type(event) for event in waiting] == [Queued, Begun, Done]

    monkeypatch.setattr(engine._core.runner, "run", run_when_told)
    asyncio.run(story())


def test_silence_is_filled_with_the_state_of_the_request(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ingress takes a replica for lost that is silent for six times as long."""
    engine: Any = engine_of(replica)
    run_step = engine._core.runner.run
    may_go_on = threading.Event()

    def run_when_told(chunks: Any) -> Any:
        may_go_on.wait(20)
        return run_step(chunks)

    async def collect(asked: GenerationRequest) -> list[Event]:
        return [event async for event in replica.generate(asked)]

    async def story() -> tuple[list[Event], list[Event]]:
        running = asyncio.create_task(collect(request(max_new_tokens=3)))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(collect(request(max_new_tokens=3, name="second")))
        await asyncio.sleep(0.7)
        may_go_on.set()
        return await running, await waiting

    monkeypatch.setattr(text_events, "SIGN_OF_LIFE_INTERVAL_S", 0.2)
    monkeypatch.setattr(engine._core.runner, "run", run_when_told)
    running, waiting = asyncio.run(story())
    assert len(running) >= 4
    assert running[:-1] == [Begun()] * (len(running) - 1)
    num_signs = waiting.index(Begun())
    assert num_signs >= 3
    assert waiting[:-1] == [Queued()] * num_signs + [Begun()]
    assert isinstance(running[-1], Done)
    assert isinstance(waiting[-1], Done)


LONG = "knight " * (LONG_CHARACTERS // 7 + 1)


def test_a_text_behind_long_ones_gives_signs_of_life_and_its_time_counts(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it is encoded itself. A client that has gone, and a text that is too late, cost no encoding."""
    encoded: list[str] = []
    are_encoding, may_encode = threading.Semaphore(0), threading.Event()
    encode = tokenizer_of(replica).encode

    def encode_when_told(prompt: RawPrompt, **given: Any) -> list[int]:
        encoded.append(prompt.text.split()[0])
        are_encoding.release()
        may_encode.wait(20)
        return encode(prompt, **given)

    async def collect(name: str, timeout_s: float, seen: list[Event]) -> None:
        asked = request(f"{name} {LONG}", name=name, timeout_s=timeout_s, max_new_tokens=3, truncate_prompt_tokens=5)
        async for event in replica.generate(asked):
            seen.append(event)

    async def story() -> None:
        running: list[list[Event]] = [[], []]
        tasks = [asyncio.create_task(collect(f"running{n}", 60, seen)) for n, seen in enumerate(running)]
        for _ in tasks:
            assert await asyncio.to_thread(are_encoding.acquire, timeout=20)
        late: list[Event] = []
        await asyncio.wait_for(collect("late", 0.3, late), 20)
        assert set(map(repr, late[:-1])) == {"Queued()"}
        assert isinstance(late[-1], Failed)
        assert isinstance(late[-1].error, RequestTimeout)
        gone = asyncio.create_task(collect("gone", 60, []))
        await asyncio.sleep(0)
        waiting: list[Event] = []
        tasks.append(asyncio.create_task(collect("waiting", 60, waiting)))
        while len(waiting) < 3:  # noqa: ASYNC110 - a list offers no event
            await asyncio.sleep(0.01)
        gone.cancel()
        assert waiting == [Queued()] * len(waiting)
        assert running[0][0] == Begun()
        may_encode.set()
        await asyncio.gather(*tasks)
        for seen in (*running, waiting):
            assert isinstance(seen[-1], Done)
        assert Begun() in waiting

    monkeypatch.setattr(module, "SIGN_OF_LIFE_INTERVAL_S", 0.1)
    monkeypatch.setattr(tokenizer_of(replica), "encode", encode_when_told)
    asyncio.run(story())
    assert sorted(encoded) == ["running0", "running1", "waiting"]


def test_a_long_text_that_is_only_counted_waits_its_turn(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives signs of life. If the wait is too long for it, it costs no encoding."""
    encoded: list[str] = []
    are_encoding, may_encode = threading.Semaphore(0), threading.Event()
    tokenize = tokenizer_of(replica).tokenize

    def tokenize_when_told(asked: TokenizationRequest, **given: Any) -> Any:
        assert isinstance(asked.prompt, RawPrompt)
        encoded.append(asked.prompt.text.split()[0])
        are_encoding.release()
        may_encode.wait(20)
        return tokenize(asked, **given)

    async def collect(name: str, seen: list[Any], queue_timeout_s: float = 50) -> None:
        options = RequestOptions(timeout_s=60, queue_timeout_s=queue_timeout_s)
        asked = TokenizationRequest(model="tested", prompt=RawPrompt(f"{name} {LONG}"), options=options)
        async for event in replica.tokenize(asked):
            seen.append(event)

    async def story() -> None:
        running: list[list[Any]] = [[], []]
        tasks = [asyncio.create_task(collect(f"running{n}", seen)) for n, seen in enumerate(running)]
        for _ in tasks:
            assert await asyncio.to_thread(are_encoding.acquire, timeout=20)
        late: list[Any] = []
        await asyncio.wait_for(collect("late", late, 0.3), 20)
        assert late[:-1] == [Queued()] * len(late[:-1]) != []
        assert isinstance(late[-1], Failed)
        assert isinstance(late[-1].error, Overloaded)
        assert late[-1].error.retry_after_s
        waiting: list[Any] = []
        tasks.append(asyncio.create_task(collect("waiting", waiting)))
        while len(waiting) < 3 or len(running[0]) < 3:  # noqa: ASYNC110 - a list offers no event
            await asyncio.sleep(0.01)
        assert waiting == [Queued()] * len(waiting)
        assert set(map(repr, running[0])) == {"Begun()"}
        may_encode.set()
        await asyncio.gather(*tasks)
        for seen in (*running, waiting):
            assert isinstance(seen[-1], Tokenization)
            assert len(seen[-1].token_ids) > 10_000

    monkeypatch.setattr(module, "SIGN_OF_LIFE_INTERVAL_S", 0.1)
    monkeypatch.setattr(tokenizer_of(replica), "tokenize", tokenize_when_told)
    asyncio.run(story())
    assert sorted(encoded) == ["running0", "running1", "waiting"]


def test_the_time_of_encoding_counts(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = tokenizer_of(replica).encode

    def encode_slowly(prompt: RawPrompt, **given: Any) -> list[int]:
        time.sleep(0.3)
        return encode(prompt, **given)

    deadlines: list[float] = []
    submit = engine_of(replica).submit

    def note_the_deadline(asked: EngineRequest, on_event: Any) -> None:
        deadlines.append(asked.deadline)
        submit(asked, on_event)

    monkeypatch.setattr(tokenizer_of(replica), "encode", encode_slowly)
    monkeypatch.setattr(engine_of(replica), "submit", note_the_deadline)
    arrival = time.monotonic()
    run(replica, request(timeout_s=60, max_new_tokens=1))
    assert arrival + 60 <= deadlines[0] < arrival + 60.3


def test_the_start_is_reported_before_the_step_that_may_kill(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = engine_of(replica)
    run_step = engine._core.runner.run
    seen: list[Event] = []
    seen_in_second_step: list[Event] = []
    num_steps = 0

    def run_slowly(chunks: Any) -> Any:
        nonlocal num_steps
        num_steps += 1
        time.sleep(0.3)
        if any(chunk.sequence.tokens == second_ids for chunk in chunks):
            seen_in_second_step.extend(seen)
        return run_step(chunks)

    async def story() -> None:
        first = asyncio.create_task(anext(replica.generate(request(max_new_tokens=1))))
        await asyncio.sleep(0.1)
        async for event in replica.generate(request(max_new_tokens=1, text="other", name="second")):
            seen.append(event)
        await first

    second_ids = array("q", tokenizer_of(replica).encode(RawPrompt("other")))
    monkeypatch.setattr(engine._core.runner, "run", run_slowly)
    asyncio.run(story())
    assert seen_in_second_step == [Queued(), Begun()]


def test_a_broken_engine_leaves_time_to_say_who_waits(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a request that comes after the failure may be sent elsewhere."""
    waiting: list[Event] = []
    known_at_the_end: list[list[Event]] = []
    replica = local_replica("dying", str(checkpoint), on_fatal_error=lambda _: known_at_the_end.append(list(waiting)))
    engine: Any = engine_of(replica)

    def broken(chunks: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    async def late() -> None:
        await asyncio.sleep(LAST_REPORTS_S / 2)
        async for event in replica.generate(request(name="late")):
            waiting.append(event)

    async def story() -> None:
        await asyncio.gather(anext(replica.generate(request())), late())

    monkeypatch.setattr(engine._core.runner, "run", broken)
    asyncio.run(story())
    assert known_at_the_end[0][:1] == [Queued()]


def test_a_dead_engine_ends_the_replica(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be mended: a device that has failed an assert, an engine that is dead, or one that hangs."""
    reasons: list[str] = []
    replica = local_replica("dying", str(checkpoint), on_fatal_error=reasons.append)
    engine: Any = engine_of(replica)
    asyncio.run(replica.check_health())
    assert reasons == []

    def broken(chunks: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(engine._core.runner, "run", broken)
    (event,) = run(replica, request())
    assert isinstance(event, Failed)
    assert isinstance(event.error, EngineFailure)
    assert reasons == ["AcceleratorError: CUDA error: device-side assert triggered"]
    engine._thread.join(10)
    with pytest.raises(EngineFailure):
        asyncio.run(replica.check_health())
    assert reasons[1:] == ["The engine's thread is dead."]


def test_a_full_memory_costs_the_requests_of_one_step(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = engine_of(replica)
    real = engine._core.runner.run
    failures = iter([torch.OutOfMemoryError("CUDA out of memory.")])

    def full_once(chunks: Any) -> Any:
        for error in failures:
            raise error
        return real(chunks)

    monkeypatch.setattr(engine._core.runner, "run", full_once)
    (event,) = run(replica, request())
    assert isinstance(event, Failed)
    assert isinstance(event.error, ModelUnavailable)
    assert event.error.retry_after_s
    (event,) = run(replica, request(max_new_tokens=5))
    assert isinstance(event, Done)
    asyncio.run(replica.check_health())


def test_limits_and_defaults_change_while_it_runs(replica: Replica) -> None:
    def new_tokens() -> int:
        (event,) = run(replica, request(do_sample=False, **ENDLESS))
        assert isinstance(event, Done)
        return event.usage.completion_tokens

    usual = new_tokens()
    try:
        replica.reconfigure({"limits": {"max_waiting_tokens": 7}, "defaults": {"max_new_tokens": 3}})
        assert engine_of(replica).queue == QueueLimits(8, 7)
        assert new_tokens() == 3
        replica.reconfigure({})
        assert engine_of(replica).queue == QueueLimits(8, 2**18)
        assert new_tokens() == usual > 3
        bad: list[dict[str, Any]] = [
            {"limit": {}},
            {"defaults": {"max_new_token": 3}},
            {"defaults": {"top_p": 3}},
            {"defaults": {"temperature": 0}},
        ]
        for wrong in bad:
            replica.reconfigure({"defaults": {"max_new_tokens": 3}})
            replica.reconfigure(wrong)  # is logged; Serve would end a replica that raises
            assert new_tokens() == 3
    finally:
        replica.reconfigure({})


def test_defaults_of_both_places_make_sense_together_or_the_replica_does_not_start(checkpoint: Path) -> None:
    of_args = GenerationParameters(num_return_sequences=2, do_sample=False)
    replica = local_replica("told", str(checkpoint), defaults=of_args)
    with pytest.raises(Phi3ServeError) as caught:
        replica.reconfigure({})
    assert caught.value.message == (
        "The defaults of args and user_config together: Greedy methods without beam search do not support "
        "`num_return_sequences` different than 1 (got 2)."
    )
    replica.reconfigure({"defaults": {"num_beams": 2}})
    (event,) = run(replica, request(max_new_tokens=3))
    assert isinstance(event, Done)
    assert len(event.completions) == 2
    replica.reconfigure({})  # is logged
    assert len(run(replica, request(max_new_tokens=3))) == 1
    engine_of(replica).close()


def test_what_is_asked_wins_over_the_operator_and_he_over_the_api(checkpoint: Path) -> None:
    replica = local_replica("told", str(checkpoint), defaults=GenerationParameters(max_new_tokens=4, do_sample=False))
    (event,) = run(replica, request(**ENDLESS))
    (other,) = run(replica, request(max_new_tokens=6, **ENDLESS))
    assert isinstance(event, Done)
    assert isinstance(other, Done)
    assert (event.usage.completion_tokens, other.usage.completion_tokens) == (4, 6)
    assert other.completions[0].sequence.token_ids[:4] == event.completions[0].sequence.token_ids
    engine_of(replica).close()


def test_a_prompt_far_too_long_is_refused_before_it_is_encoded(replica: Replica) -> None:
    text = "castle " * 300_000
    (event,) = run(replica, request(text))
    assert isinstance(event, Failed)
    assert event.error.args[0].startswith("The prompt has at least ")
    last = run(replica, request(text[:1_000_000], truncate_prompt_tokens=5, max_new_tokens=1))[-1]
    assert isinstance(last, Done)
    assert last.usage.prompt_tokens == 5


def test_a_length_that_is_asked_wins_over_the_operators_by_either_name(checkpoint: Path) -> None:
    replica = local_replica("told", str(checkpoint), defaults=GenerationParameters(max_new_tokens=9, min_new_tokens=9))
    num_prompt = 18

    def new_tokens(**given: Any) -> int:
        (event,) = run(replica, request(**given, do_sample=False))
        assert isinstance(event, Done)
        return event.usage.completion_tokens

    assert new_tokens() == 9
    assert new_tokens(max_length=num_prompt + 2) == 2
    ended = {"sequence_bias": [[[tokenizer_of(replica).encode(RawPrompt("<|end|>"))[0]], 100.0]]}
    assert new_tokens(**ended) == 9
    assert new_tokens(**ended, min_length=0) < 9
    engine_of(replica).close()
