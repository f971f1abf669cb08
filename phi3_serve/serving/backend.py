"""``core.Backend`` over Ray Serve: is the model ready, has it capacity, and which error does a failure become."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from phi3_serve import overload
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.core.adapter import AdapterChoice
from phi3_serve.core.backend_protocol import Occupancy
from phi3_serve.core.engine_info import MAX_ROWS
from phi3_serve.core.event import SIGN_OF_LIFE_INTERVAL_S, Begun, Delta, Done, Failed, Queued
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.core.host_info import HostInfo
from phi3_serve.core.tokenization import Tokenization, TokenizationRequest
from phi3_serve.core.variant_state import VariantState
from phi3_serve.errors import EngineFailure, ModelNotLoaded, ModelUnavailable, ReplicaLost, unknown_adapter
from phi3_serve.observability.host import cpu_info
from phi3_serve.overload import STARTING_RETRY_AFTER_S
from phi3_serve.serving.cluster import ClusterView
from phi3_serve.serving.placement import Placement
from phi3_serve.serving.ray_errors import RAY_ERRORS, from_ray, replica_errors
from phi3_serve.serving.wake_up import WakeUpCalls

logger = logging.getLogger("ray.serve")

RETRY_TIMEOUT_S = 60.0  # until another replica takes a request whose replica was lost
# In this time a replica gives six signs of life. Then it is lost, or its node is, which closes no connection.
SILENCE_TIMEOUT_S = 6 * SIGN_OF_LIFE_INTERVAL_S
LOST_MESSAGE = "The replica ended while it ran this request. The request may be the cause, so it is not tried again."
# Seconds. A replica without its model ends soon after another one has loaded it; meanwhile it still gets requests.
MEETING_TIMEOUT_S = 5.0
MEETING_INTERVAL_S = 0.1
READY_POLL_INTERVAL_S = 0.5  # of a request that waits for its model
# Requests. While no replica runs, a request must still reach the ingress, to start one or to learn why none runs.
MIN_CAPACITY = 64

Answer = TypeVar("Answer")


class HandleBackend:
    """``core.Backend`` over the deployment handles of the replicas."""

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        placements: Mapping[str, Placement],
        view: ClusterView,
        limits: CurrentLimits,
    ) -> None:
        self._handles = handles
        # options() is costly, so it is called once for each model
        self._streams = {n: h.options(method_name="generate", stream=True) for n, h in handles.items()}
        # only a call through Ray's object store tells when a replica has accepted it
        self._retries = {n: h.options(_by_reference=True) for n, h in self._streams.items()}
        self._tokenizers = {n: h.options(method_name="tokenize", stream=True) for n, h in handles.items()}
        self._placements = placements
        self._view = view
        self._limits = limits
        self._num_in_flight = dict.fromkeys(handles, 0)  # requests, by model
        self._num_waiting = dict.fromkeys(handles, 0)  # requests that wait until their model is ready, by model
        self._wake_up_calls = WakeUpCalls(handles)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Done, None]:
        """Run ``request`` on a replica of its model; see ``core.Backend``.

        If a replica dies while the request waits in its queue, the request is sent to another replica, once. If a
        replica runs without its model although another one has it, the request is sent again until it meets that one.
        """
        await self._require_ready(request.model, request.adapters, request.options.wait_s)
        self._require_capacity(request.model)
        self._num_in_flight[request.model] += 1
        give_up_at = time.monotonic() + MEETING_TIMEOUT_S
        is_retry = is_answered = False
        try:
            while True:
                try:
                    async with aclosing(self._try_once(request, is_retry=is_retry)) as events:
                        async for event in events:
                            if not is_answered:
                                is_answered = True
                                self._view.note_answer(request.model)
                            yield event
                    return
                except RayActorError:
                    logger.warning("a replica of %s was lost; another one gets its request", request.model)
                    is_retry = True
                except ModelNotLoaded:
                    if time.monotonic() >= give_up_at:
                        raise
                    await self._before_next_meeting(request)
        finally:
            self._num_in_flight[request.model] -= 1

    async def tokenize(self, request: TokenizationRequest) -> Tokenization:
        """Use the tokenizer of a replica; see ``core.Backend``."""
        await self._require_ready(request.model, request.adapters, request.options.wait_s)
        give_up_at = time.monotonic() + MEETING_TIMEOUT_S
        while True:
            try:
                return await self._tokenize_once(request)
            except ModelNotLoaded:
                if time.monotonic() >= give_up_at:
                    raise
                await self._before_next_meeting(request)

    async def _tokenize_once(self, request: TokenizationRequest) -> Tokenization:
        """What one replica answers. A text may wait there for others, and gives signs of life."""
        events: Any = self._tokenizers[request.model].remote(request)  # DeploymentResponseGenerator
        try:
            async for event in _while_alive(events, SILENCE_TIMEOUT_S):
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Tokenization):
                    self._view.note_answer(request.model)
                    return event
        except RAY_ERRORS as error:
            raise from_ray(error) from error
        finally:
            events.cancel()
        raise EngineFailure("The replica gave no answer.")

    async def _before_next_meeting(self, request: GenerationRequest | TokenizationRequest) -> None:
        """Wait until the request may meet a replica that has its model."""
        await asyncio.sleep(MEETING_INTERVAL_S)
        await self._require_ready(request.model, request.adapters, 0.0)

    async def _try_once(self, request: GenerationRequest, *, is_retry: bool) -> AsyncGenerator[Delta | Done, None]:
        """The events of one replica.

        Serve itself finds another replica if one dies before it has accepted the request.

        Raises:
            RayActorError: the replica was lost before it began the request, and this is not the retry.
            ReplicaLost: the replica was lost, and the request may be the cause.
        """
        streams = self._retries if is_retry else self._streams
        events: Any = streams[request.model].remote(request)  # DeploymentResponseGenerator
        may_be_cause = True
        try:
            if is_retry:
                async with asyncio.timeout(RETRY_TIMEOUT_S):
                    await events._to_object_ref_gen()  # returns when a replica has accepted the request
            async for event in _while_alive(events, request.options.timeout_s + RETRY_TIMEOUT_S):
                match event:
                    case Failed(failure, timings):
                        failure.timings = timings
                        raise failure
                    case Queued() | Begun():
                        may_be_cause = isinstance(event, Begun)
                    case _:
                        may_be_cause = True
                        yield event
        except TimeoutError:
            raise ModelUnavailable(
                "The replica was lost, and no other took over in time.", STARTING_RETRY_AFTER_S
            ) from None
        except RAY_ERRORS as error:
            if isinstance(error, RayActorError):
                if may_be_cause:
                    raise ReplicaLost(LOST_MESSAGE) from error
                if not is_retry:
                    raise
            raise from_ray(error) from error
        finally:
            events.cancel()

    async def states(self) -> Mapping[str, VariantState]:
        """The state of every variant; see ``core.Backend``."""
        states = await self._view.states()
        self._wake_up_calls.cancel_answered(states)
        return states

    async def host_info(self) -> HostInfo:
        """The GPUs of running replicas, or this node's CPU; see ``core.Backend``."""
        states = await self.states()
        on_gpu = [n for n, p in self._placements.items() if p.device == "cuda" and states[n].state == "ready"]
        if not on_gpu:
            return HostInfo(cpu=await asyncio.to_thread(cpu_info))
        gpus = [await _reply(self._handles[n].host_info.remote()) for n in on_gpu]
        return HostInfo(gpus=tuple({gpu.id: gpu for gpu in gpus}.values()))  # models may share a GPU

    def capacity(self) -> int:
        """How many requests can run or wait in all models; see ``core.Backend``.

        Requests that wait for a model to start are added, so that they take no place of requests to other models.
        """
        running = sum(map(self._capacity_of, self._handles))
        return max(MIN_CAPACITY, running) + sum(self._num_waiting.values())

    def occupancy(self, model: str) -> Occupancy:
        """How busy the replicas of ``model`` are; see ``core.Backend``."""
        num_places = self._view.num_replicas(model) * MAX_ROWS[self._placements[model].device]
        return Occupancy(num_places, self._num_in_flight[model] + self._num_waiting[model])

    def _capacity_of(self, model: str) -> int:
        rows = MAX_ROWS[self._placements[model].device]
        return self._view.num_replicas(model) * (rows + self._limits.current.max_waiting_requests)

    def _require_capacity(self, model: str) -> None:
        """Refuse what every replica would refuse: here it takes a tenth of the time."""
        if self._num_in_flight[model] >= self._capacity_of(model) > 0:
            raise overload.queue_is_full(self._limits.current.max_waiting_requests, "model")

    async def _require_ready(self, model: str, adapters: Sequence[AdapterChoice], wait_s: float) -> None:
        """Start ``model`` if it sleeps and offers ``adapters``, and wait at most ``wait_s`` until it is ready."""
        deadline = time.monotonic() + wait_s
        if await self._is_ready(model, adapters, deadline):
            return
        if self._num_waiting[model] >= (limit := self._limits.current.max_waiting_requests):
            raise overload.too_many_wait_for_start(model, limit)
        self._num_waiting[model] += 1
        try:
            while not await self._is_ready(model, adapters, deadline):  # noqa: ASYNC110 - Serve offers no event
                await asyncio.sleep(READY_POLL_INTERVAL_S)
        finally:
            self._num_waiting[model] -= 1

    async def _is_ready(self, model: str, adapters: Sequence[AdapterChoice], deadline: float) -> bool:
        """Whether ``model`` is ready. If it sleeps, it is started.

        Raises:
            UnknownModel: it is not ready, and will not offer one of ``adapters``.
            ModelUnavailable: it is not ready, and waiting does not help or ``deadline`` has passed.
        """
        state = await self._view.state_of(model)
        if state.state == "ready":
            return True  # its replica knows best which adapters there are
        if _not_offered(adapters, state):  # an adapter that was deployed just before is in no older reading
            state = await self._view.new_state_of(model)
            if state.state == "ready":
                return True
            if unknown := _not_offered(adapters, state):
                self._require_new_version(model, unknown[0], state, deadline)
                return False
        if state.state == "scaled_to_zero":
            self._wake_up_calls.start(model)
        next_try_s = state.next_try_s or 0.0
        if state.retry_after_s is None or time.monotonic() + next_try_s >= deadline:
            raise _unavailable(model, state)
        return False

    def _require_new_version(self, model: str, adapter: AdapterChoice, state: VariantState, deadline: float) -> None:
        """Raise an error, unless a version that may offer ``adapter`` is being built and ``deadline`` is ahead."""
        error = unknown_adapter(adapter.name, adapter.field, model, [each.name for each in state.adapters or ()])
        if not self._view.is_being_built:
            raise error
        if time.monotonic() >= deadline:
            hint = "A new version of the application is being built, which may offer it. Try again in a while."
            raise ModelUnavailable(f"{error.message} {hint}", STARTING_RETRY_AFTER_S)


async def _reply(call: Awaitable[Any]) -> Any:
    """What a replica answers to ``call``, which is not a stream.

    Raises:
        Phi3ServeError: it does not answer in time, or fails.
    """
    try:
        async with asyncio.timeout(SILENCE_TIMEOUT_S):
            with replica_errors():
                return await call
    except TimeoutError:
        raise ModelUnavailable("The replica is silent.", STARTING_RETRY_AFTER_S) from None
    except RAY_ERRORS as error:
        raise from_ray(error) from error


async def _while_alive(events: AsyncIterator[Answer], first_timeout_s: float) -> AsyncIterator[Answer]:
    """``events``, of which the first may take ``first_timeout_s``, because Serve may still look for a replica.

    Raises:
        RayActorError: the replica gives no sign of life, or ends.
        RAY_ERRORS: the replica fails on this request.
    """
    timeout_s = first_timeout_s
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                with replica_errors():
                    event = await anext(events)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RayActorError(error_msg="The replica is silent.") from None
        timeout_s = SILENCE_TIMEOUT_S
        yield event


def _not_offered(choices: Sequence[AdapterChoice], state: VariantState) -> list[AdapterChoice]:
    """Those of ``choices`` that are known not to be offered."""
    if state.adapters is None:
        return []
    names = {adapter.name for adapter in state.adapters}
    return [choice for choice in choices if choice.name not in names]


def _unavailable(model: str, state: VariantState) -> ModelUnavailable:
    messages = {
        "scaled_to_zero": f"Model {model} was scaled to zero and is starting now. Try again in a while.",
        "loading": f"Model {model} is loading. {state.detail}",
        "unplaceable": f"Model {model} cannot run on this cluster. {state.detail}",
        "failed": f"Model {model} could not be started. {state.detail}",
    }
    return ModelUnavailable(messages[state.state], state.retry_after_s)
