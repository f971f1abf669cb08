"""Who may wait for a model that sleeps, and who is asked again. Ray's part, handles and states, is a stand-in."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorDiedError

from phi3_serve.api.limits import CurrentLimits
from phi3_serve.config.limits import LimitsConfig
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.adapter import AdapterChoice, OfferedAdapter
from phi3_serve.core.backend_protocol import Occupancy
from phi3_serve.core.event import Begun, Delta, Done, Failed, Queued
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.host_info import GpuInfo
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.core.usage import Usage
from phi3_serve.core.variant_state import State, VariantState
from phi3_serve.errors import (
    EngineFailure,
    InvalidRequest,
    ModelNotLoaded,
    ModelUnavailable,
    Overloaded,
    Phi3ServeError,
    ReplicaLost,
    UnknownModel,
)
from phi3_serve.overload import waited_too_long
from phi3_serve.parameters import NONE_GIVEN
from phi3_serve.serving import backend as backend_module
from phi3_serve.serving.backend import MIN_CAPACITY, HandleBackend
from phi3_serve.serving.cluster import ClusterView
from phi3_serve.serving.placement import place

LIMIT = 4
DONE = Done((), Usage(1, 1))
DEATH = ActorDiedError()
SILENCE = asyncio.TimeoutError  # of a replica whose node is lost: no event, and no error


def status(code: StatusCode) -> AioRpcError:
    """What the call of a replica raises when gRPC ends it with ``code``."""
    return AioRpcError(code, Metadata(), Metadata())


class Handle:
    """A deployment handle. Each stream has the next of ``scripts``, else one event; a ping waits for ever."""

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = list(scripts)
        self.num_pings = 0

    def options(self, **options: Any) -> "Handle":
        return self

    @property
    def ping(self) -> Any:
        return self

    def remote(self, request: GenerationRequest | None = None) -> Any:
        if request is None:
            self.num_pings += 1
            return asyncio.Event().wait()
        return Events(self.scripts.pop(0) if self.scripts else [DONE])


class Events:
    """The events of one replica; it waits for an ``asyncio.Event``, and an exception ends them."""

    def __init__(self, script: list[Any]) -> None:
        self._script = script

    async def _to_object_ref_gen(self) -> None:
        pass

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Any:
        if not self._script:
            raise StopAsyncIteration
        event = self._script.pop(0)
        if event is SILENCE:
            await asyncio.Event().wait()
        if isinstance(event, asyncio.Event):
            await event.wait()
            return await anext(self)
        if isinstance(event, BaseException):
            raise event
        return event

    def cancel(self) -> None:
        pass


def view_of(states: Mapping[str, VariantState], monkeypatch: pytest.MonkeyPatch) -> ClusterView:
    view = ClusterView({}, app_name="phi3", elastic=False)
    monkeypatch.setattr(view, "_read", lambda: dict(states))
    return view


def backend_of(
    states: Mapping[str, VariantState], monkeypatch: pytest.MonkeyPatch, handle: Handle | None = None
) -> HandleBackend:
    monkeypatch.setattr(backend_module, "READY_POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr("phi3_serve.serving.cluster.MAX_AGE_S", 0.0)
    handles: Any = {name: handle or Handle() for name in states}
    placements = {
        name: place(ModelConfig(name=name, source="x", device="cpu"), cluster_has_gpu=False) for name in states
    }
    limits = CurrentLimits(LimitsConfig(max_waiting_requests=LIMIT))
    return HandleBackend(handles, placements, view_of(states, monkeypatch), limits)


def request_to(model: str, wait_s: float) -> GenerationRequest:
    return GenerationRequest(
        request_id="r",
        model=model,
        prompt=RawPrompt("a"),
        parameters=NONE_GIVEN,
        options=RequestOptions(wait_s=wait_s, timeout_s=60),
    )


def tokenization_of(model: str, wait_s: float = 0.0, adapters: tuple[AdapterChoice, ...] = ()) -> TokenizationRequest:
    options = RequestOptions(wait_s=wait_s, timeout_s=60)
    return TokenizationRequest(model=model, prompt=RawPrompt("a"), adapters=adapters, options=options)


async def answer(
    backend: HandleBackend, model: str, wait_s: float = 0.0, adapters: tuple[AdapterChoice, ...] = ()
) -> Any:
    async with aclosing(backend.generate(replace(request_to(model, wait_s), adapters=adapters))) as events:
        return await anext(events)


@asynccontextmanager
async def waiting(backend: HandleBackend, model: str, count: int) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """``count`` requests that would wait a minute for ``model``."""
    tasks = [asyncio.create_task(answer(backend, model, 60)) for _ in range(count)]
    try:
        async with asyncio.timeout(10):  # until each waits or was refused
            while backend.occupancy(model).num_requests + sum(task.done() for task in tasks) < count:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_those_who_wait_for_a_sleeping_model_take_no_place_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {
        "sleeping": VariantState("scaled_to_zero", "", 10),
        "loading": VariantState("loading", "", 10),
        "ready": VariantState("ready", num_replicas=1),
    }

    async def story() -> None:
        backend = backend_of(states, monkeypatch)
        assert isinstance(await answer(backend, "ready"), Done)
        alone = backend.capacity()
        assert alone == 128 + LIMIT
        async with waiting(backend, "sleeping", 230) as first, waiting(backend, "loading", 230) as second:
            for model, tasks in (("sleeping", first), ("loading", second)):
                refused = [task.exception() for task in tasks if task.done()]
                assert len(refused) == 230 - LIMIT
                assert {str(error.args[0]) for error in refused if isinstance(error, Overloaded)} == {
                    f"{LIMIT} requests are waiting for model {model} to start; limits.max_waiting_requests is {LIMIT}."
                }
                assert all(isinstance(error, Overloaded) and error.retry_after_s == 10 for error in refused)
            assert backend.capacity() == alone + 2 * LIMIT
            assert backend.occupancy("sleeping") == Occupancy(num_places=0, num_requests=LIMIT)
            assert backend.occupancy("ready") == Occupancy(num_places=128, num_requests=0)
            assert isinstance(await answer(backend, "ready"), Done)
        assert backend.capacity() == alone

    asyncio.run(story())


def test_those_who_wait_are_answered_when_the_model_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"m": VariantState("loading", "", 10)}

    async def story() -> None:
        backend = backend_of(states, monkeypatch)
        async with waiting(backend, "m", LIMIT) as tasks:
            assert backend.capacity() == MIN_CAPACITY + LIMIT
            states["m"] = VariantState("ready", num_replicas=1)
            assert all(isinstance(done, Done) for done in await asyncio.gather(*tasks))
            assert backend.capacity() == 128 + LIMIT

    asyncio.run(story())


def test_who_does_not_wait_learns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        backend = backend_of({"m": VariantState("loading", "", 10)}, monkeypatch)
        async with waiting(backend, "m", LIMIT):
            for wait_s in (0.0, 0.05):
                with pytest.raises(ModelUnavailable) as caught:
                    await answer(backend, "m", wait_s)
                assert type(caught.value) is (Overloaded if wait_s else ModelUnavailable)
        with pytest.raises(ModelUnavailable, match="is loading"):
            await answer(backend, "m", 0.05)

    asyncio.run(story())


@pytest.mark.parametrize("asks", ["answer", "tokenization"])
def test_who_comes_after_an_answer_is_not_refused_because_of_an_older_reading(
    monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    """The model was ready, its replica was replaced, and a request waited in Serve for the new one."""
    states = {"m": VariantState("ready", num_replicas=1)}

    async def story() -> None:
        is_loaded = asyncio.Event()
        backend = backend_of(states, monkeypatch, Handle([is_loaded, DONE if asks == "answer" else TOKENIZED]))
        await backend.states()
        first = asyncio.create_task(
            answer(backend, "m") if asks == "answer" else backend.tokenize(tokenization_of("m"))
        )
        states["m"] = VariantState("loading", "", 10)
        while (await backend.states())["m"].state != "loading":
            pass
        monkeypatch.setattr("phi3_serve.serving.cluster.MAX_AGE_S", 0.1)
        states["m"] = VariantState("ready", num_replicas=1)
        is_loaded.set()
        await first
        await answer(backend, "m")

    asyncio.run(story())


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ([[Queued(), DEATH], [DONE]], [DONE]),
        ([[Queued(), DEATH], [Queued(), Begun(), Delta("a"), DONE]], [Delta("a"), DONE]),
        ([[DEATH]], ReplicaLost),
        ([[Queued(), Begun(), DEATH]], ReplicaLost),
        ([[Delta("a"), DEATH]], ReplicaLost),
        ([[Queued(), Delta("a"), DEATH]], ReplicaLost),
        ([[Queued(), DEATH], [DEATH]], ReplicaLost),
        ([[Queued(), DEATH], [Queued(), DEATH]], ModelUnavailable),
        ([[Queued(), SILENCE], [DONE]], [DONE]),
        ([[Queued(), Begun(), Begun(), SILENCE]], ReplicaLost),
        ([[Delta("a"), status(StatusCode.CANCELLED)]], ReplicaLost),
        ([[Queued(), status(StatusCode.CANCELLED)], [DONE]], [DONE]),
        ([[Delta("a"), status(StatusCode.RESOURCE_EXHAUSTED)]], EngineFailure),
        ([[Delta("a"), asyncio.CancelledError()]], ReplicaLost),
        ([[Queued(), asyncio.CancelledError()], [DONE]], [DONE]),
        ([[Queued(), KeyError("x")]], EngineFailure),
        ([[Queued(), TimeoutError()]], EngineFailure),
    ],
)
def test_only_a_request_that_has_not_begun_is_sent_to_another_replica(
    monkeypatch: pytest.MonkeyPatch, scripts: list[list[Any]], expected: Any
) -> None:
    monkeypatch.setattr(backend_module, "SILENCE_TIMEOUT_S", 0.05)
    spare: list[Any] = [DONE]
    handle = Handle(*map(list, scripts), spare)

    async def story() -> list[Any]:
        backend = backend_of({"m": VariantState("ready", num_replicas=2)}, monkeypatch, handle)
        async with aclosing(backend.generate(request_to("m", 0))) as events:
            return [event async for event in events]

    if isinstance(expected, list):
        assert asyncio.run(story()) == expected
    else:
        with pytest.raises(Phi3ServeError) as caught:
            asyncio.run(story())
        assert type(caught.value) is expected
        assert (getattr(caught.value, "retry_after_s", None) is not None) == (expected is ModelUnavailable)
    assert handle.scripts == [spare]


TOKENIZED = Tokenization(text="a", token_ids=(5,), context_length=8)


def test_a_client_that_leaves_ends_its_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        backend = backend_of({"m": VariantState("ready", num_replicas=2)}, monkeypatch, Handle([Queued(), SILENCE]))
        request = asyncio.create_task(answer(backend, "m"))
        await asyncio.sleep(0.05)
        request.cancel()
        await asyncio.wait({request})
        assert request.cancelled()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        ([[TOKENIZED]], TOKENIZED),
        ([[Queued(), Queued(), Begun(), TOKENIZED]], TOKENIZED),
        ([[Failed(ModelNotLoaded("not here"))], [TOKENIZED]], TOKENIZED),
        ([[Failed(InvalidRequest("no", "prompt"))]], InvalidRequest),
        ([[Queued(), Failed(waited_too_long())]], Overloaded),
        ([[DEATH]], ModelUnavailable),
        ([[SILENCE]], ModelUnavailable),
        ([[Queued(), SILENCE]], ModelUnavailable),
        ([[KeyError("x")]], EngineFailure),
        ([[Queued()]], EngineFailure),
    ],
)
def test_a_tokenizer_is_used_where_its_model_is(
    monkeypatch: pytest.MonkeyPatch, scripts: list[list[Any]], expected: Any
) -> None:
    monkeypatch.setattr(backend_module, "MEETING_INTERVAL_S", 0.01)
    monkeypatch.setattr(backend_module, "SILENCE_TIMEOUT_S", 0.05)
    asked = tokenization_of("m")
    spare: list[Any] = [TOKENIZED]
    handle = Handle(*map(list, scripts), spare)
    backend = backend_of({"m": VariantState("ready", num_replicas=1)}, monkeypatch, handle)
    if isinstance(expected, Tokenization):
        assert asyncio.run(backend.tokenize(asked)) == expected
    else:
        with pytest.raises(expected):
            asyncio.run(backend.tokenize(asked))
    assert handle.scripts == [spare]


def test_a_tokenizer_of_a_sleeping_model_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"m": VariantState("scaled_to_zero", "", 10)}

    async def story() -> None:
        backend = backend_of(states, monkeypatch, Handle([TOKENIZED]))
        with pytest.raises(ModelUnavailable, match="is starting now"):
            await backend.tokenize(tokenization_of("m"))
        waiting = asyncio.create_task(backend.tokenize(tokenization_of("m", 60)))
        await asyncio.sleep(0.1)
        states["m"] = VariantState("ready", num_replicas=1)
        assert await waiting == TOKENIZED

    asyncio.run(story())


@pytest.mark.parametrize("state", ["scaled_to_zero", "loading"])
def test_an_unknown_adapter_wakes_no_model(monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    poet, pirate = OfferedAdapter("poet", "org/poet", 1.0), OfferedAdapter("pirate", "org/pirate", 1.0)

    async def story(offered: tuple[OfferedAdapter, ...] | None, name: str) -> tuple[list[Phi3ServeError], int]:
        """The errors of a prompt and of a tokenization that name an adapter, and the calls that wake the model."""
        handle = Handle()
        backend = backend_of({"m": VariantState(state, "", 10, adapters=offered)}, monkeypatch, handle)
        choices = (AdapterChoice("poet"), AdapterChoice(name, field="adapters.1.name"))
        with pytest.raises(Phi3ServeError) as of_prompt:
            await anext(backend.generate(replace(request_to("m", 0), adapters=choices)))
        with pytest.raises(Phi3ServeError) as of_tokenizer:
            await backend.tokenize(tokenization_of("m", adapters=choices))
        await asyncio.sleep(0.01)
        return [of_prompt.value, of_tokenizer.value], handle.num_pings

    errors, num_pings = asyncio.run(story((poet, pirate), "unknown"))
    assert [type(error) for error in errors] == [UnknownModel] * 2
    refusal = "`adapters.1.name` names the adapter unknown, which m does not offer; offered are poet, pirate."
    assert {error.message for error in errors} == {refusal}
    assert num_pings == 0
    for known, name in ((None, "unknown"), ((poet, pirate), "pirate")):
        errors, num_pings = asyncio.run(story(known, name))
        assert [type(error) for error in errors] == [ModelUnavailable] * 2
        assert num_pings == (state == "scaled_to_zero")


def test_an_adapter_that_was_deployed_just_before_wakes_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last reading, of a moment ago, does not have it."""
    states = {"m": VariantState("scaled_to_zero", "", 10, adapters=())}
    asked = replace(request_to("m", 0), adapters=(AdapterChoice("poet"),))

    async def story() -> None:
        handle = Handle()
        backend = backend_of(states, monkeypatch, handle)
        monkeypatch.setattr("phi3_serve.serving.cluster.MAX_AGE_S", 0.2)
        await backend.states()
        states["m"] = replace(states["m"], adapters=(OfferedAdapter("poet", "org/poet", 1.0),))
        with pytest.raises(ModelUnavailable, match="is starting now"):
            await anext(backend.generate(asked))
        await asyncio.sleep(0.01)
        assert handle.num_pings == 1

    asyncio.run(story())


def test_an_adapter_that_a_new_version_may_offer_is_not_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve builds a changed application for seconds, and meanwhile has the deployments of the last one."""
    states = {"m": VariantState("scaled_to_zero", "", 10, adapters=())}
    poet = (OfferedAdapter("poet", "org/poet", 1.0),)

    async def story() -> None:
        handle = Handle()
        backend = backend_of(states, monkeypatch, handle)
        view = backend._view
        view.is_being_built = True
        asked = tokenization_of("m", adapters=(AdapterChoice("poet"),))
        with pytest.raises(ModelUnavailable, match=r"which m does not offer; it offers none\. A new version") as caught:
            await backend.tokenize(asked)
        assert caught.value.retry_after_s == 10
        assert handle.num_pings == 0
        waiting = asyncio.create_task(answer(backend, "m", 60, (AdapterChoice("poet"),)))
        while not backend.occupancy("m").num_requests:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        view.is_being_built = False
        states["m"] = VariantState("ready", adapters=poet, num_replicas=1)
        assert isinstance(await waiting, Done)

    asyncio.run(story())


def test_a_gpu_that_models_share_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [
        GpuInfo(
            id=gpu, name="L4", load_percent=5, temperature_celsius=40, memory_used_bytes=used, memory_total_bytes=24
        )
        for gpu, used in (("a", 6), ("b", 7), ("a", 9))
    ]
    backend = backend_of({str(number): VariantState("ready") for number in range(3)}, monkeypatch)
    placements = {
        str(number): place(ModelConfig(name=str(number), source="x", device="cuda", num_gpus=0.5), cluster_has_gpu=True)
        for number in range(3)
    }
    monkeypatch.setattr(backend, "_placements", placements)
    for number, gpu in enumerate(gpus):

        async def reading(gpu: GpuInfo = gpu) -> GpuInfo:
            return gpu

        monkeypatch.setitem(backend._handles, str(number), SimpleNamespace(host_info=SimpleNamespace(remote=reading)))
    assert asyncio.run(backend.host_info()).gpus == (gpus[2], gpus[1])
