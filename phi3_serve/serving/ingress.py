"""The HTTP front: which model, whether it can answer now, and every failure as one of our errors."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from phi3_serve import overload
from phi3_serve.api.app import create_app
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.config import AppConfig, LiveConfig
from phi3_serve.core import MAX_ROWS, Delta, Done, Failed, GenerationRequest, HostInfo, VariantState
from phi3_serve.errors import EngineFailure, ModelUnavailable, Phi3ServeError
from phi3_serve.observability.host import cpu_info
from phi3_serve.serving.cluster import ClusterView
from phi3_serve.serving.placement import Placement

logger = logging.getLogger("ray.serve")

SECONDS_FOR_ANOTHER_REPLICA = 60.0
SECONDS_BETWEEN_LOOKS = 0.5  # of a request that waits for its model
LEAST_CAPACITY = 64  # requests: while nothing runs, somebody has to be told so, and to wake a model


class Ingress:
    """Routes HTTP to the replicas; Serve asks it for its ASGI app, so no app is ever pickled."""

    def __init__(
        self, config: AppConfig, placements: Mapping[str, Placement], models: dict[str, DeploymentHandle[Any]]
    ) -> None:
        view = ClusterView(placements, app_name=serve.get_replica_context().app_name, elastic=config.cluster.elastic)
        self._config = config
        self._limits = CurrentLimits(config.limits)
        self._backend = HandleBackend(models, placements, view, self._limits)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app, built in the process that runs it."""
        return create_app(self._backend, self._config, limits=self._limits, behind_ray=True)

    def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Take over limits; requests that are here keep theirs. Serve calls it, at the start too."""
        self._limits.current = LiveConfig.model_validate(user_config).over(self._config.limits)


class HandleBackend:
    """``core.Backend`` over the replicas' deployment handles."""

    def __init__(
        self,
        handles: Mapping[str, DeploymentHandle[Any]],
        placements: Mapping[str, Placement],
        view: ClusterView,
        limits: CurrentLimits,
    ) -> None:
        self._handles = handles
        # options() is costly, so once per model
        self._streams = {n: h.options(method_name="generate", stream=True) for n, h in handles.items()}
        self._placements = placements
        self._view = view
        self._limits = limits
        self._num_asked = dict.fromkeys(handles, 0)  # requests that are with a model now
        self._wake_ups: dict[str, asyncio.Task[None]] = {}

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Delta | Done, None]:
        """Run ``request`` on a replica of its model; see ``core.Backend``.

        A replica that dies before it has said anything is replaced by another, once; the client never knows.
        """
        await self._require_ready(request.model, request.options.wait_s)
        self._require_capacity(request.model)
        self._num_asked[request.model] += 1
        try:
            for patience_s in (None, SECONDS_FOR_ANOTHER_REPLICA):
                try:
                    async with aclosing(self._run(request, patience_s)) as events:
                        async for event in events:
                            yield event
                    return
                except RayActorError:
                    logger.warning("a replica of %s was lost; its request is asked of another", request.model)
        finally:
            self._num_asked[request.model] -= 1

    async def _run(self, request: GenerationRequest, patience_s: float | None) -> AsyncGenerator[Delta | Done, None]:
        """The events of one try. ``patience_s`` for the first event makes it the last one.

        Raises:
            RayActorError: the replica was lost before it said anything, and this is not the last try.
        """
        events: Any = self._streams[request.model].remote(request)  # DeploymentResponseGenerator
        has_begun = False
        try:
            async with asyncio.timeout(patience_s):
                event = await anext(events, None)
            while event is not None:
                if isinstance(event, Failed):
                    raise event.error
                has_begun = True
                yield event
                event = await anext(events, None)
        except TimeoutError:
            raise ModelUnavailable(
                "The replica was lost, and no other took over in time.", overload.STARTING_RETRY_AFTER_S
            ) from None
        except (RayError, RayServeException) as error:
            if isinstance(error, RayActorError) and not has_begun and patience_s is None:
                raise
            raise translated(error) from error
        finally:
            events.cancel()

    async def states(self) -> Mapping[str, VariantState]:
        """The state of every variant; see ``core.Backend``."""
        states = await self._view.states()
        for name in list(self._wake_ups):
            if states[name].state not in ("scaled_to_zero", "loading"):
                self._wake_ups.pop(name).cancel()
        return states

    async def host_info(self) -> HostInfo:
        """The GPUs of running replicas, or this node's CPU; see ``core.Backend``."""
        states = await self.states()
        on_gpu = [n for n, p in self._placements.items() if p.device == "cuda" and states[n].state == "ready"]
        if not on_gpu:
            return HostInfo(cpu=await asyncio.to_thread(cpu_info))
        try:
            return HostInfo(gpus=tuple([await self._handles[n].host_info.remote() for n in on_gpu]))
        except (RayError, RayServeException) as error:
            raise translated(error) from error

    def capacity(self) -> int:
        """How many requests can run or wait in all models; see ``core.Backend``."""
        return max(LEAST_CAPACITY, sum(map(self._capacity_of, self._handles)))

    def _capacity_of(self, model: str) -> int:
        rows = MAX_ROWS[self._placements[model].device]
        return self._view.num_replicas(model) * (rows + self._limits.current.max_waiting_requests)

    def _require_capacity(self, model: str) -> None:
        """Refuse here what every replica would refuse: that takes a tenth of the time."""
        if self._num_asked[model] >= self._capacity_of(model) > 0:
            raise overload.queue_is_full(self._limits.current.max_waiting_requests)

    async def _require_ready(self, model: str, wait_s: float) -> None:
        """Wake ``model`` if it sleeps, and wait so long for it."""
        give_up = time.monotonic() + wait_s
        while (state := await self._view.state_of(model)).state != "ready":
            if state.state == "scaled_to_zero":
                self._wake(model)
            if state.retry_after_s is None or time.monotonic() >= give_up:
                raise self._unavailable(model, state)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def _unavailable(self, model: str, state: VariantState) -> ModelUnavailable:
        words = {
            "scaled_to_zero": f"Model {model} was scaled to zero and is starting now. Try again in a while.",
            "loading": f"Model {model} is loading. {state.detail}",
            "unplaceable": f"Model {model} cannot run on this cluster. {state.detail}",
            "failed": f"Model {model} could not be started. {state.detail}",
        }
        return ModelUnavailable(words[state.state], state.retry_after_s)

    def _wake(self, model: str) -> None:
        """Leave one waiting call in the router of a sleeping model: it is what Serve scales up for."""
        if model not in self._wake_ups or self._wake_ups[model].done():
            self._wake_ups[model] = asyncio.create_task(self._ping(model))

    async def _ping(self, model: str) -> None:
        with contextlib.suppress(RayError, RayServeException):
            await self._handles[model].ping.remote()


def translated(error: Exception) -> Phi3ServeError:
    """One of our errors for one of Ray's: the only place where the two meet."""
    if isinstance(error, BackPressureError):
        return overload.router_is_full()
    if isinstance(error, DeploymentUnavailableError):
        return ModelUnavailable("The model's replicas could not be started.")
    if isinstance(error, RayActorError):
        return ModelUnavailable(
            "The replica was lost while it ran this request; another one takes over.", overload.STARTING_RETRY_AFTER_S
        )
    if isinstance(error, RayTaskError):
        return EngineFailure(f"The replica failed on this request: {type(error.cause).__name__}.")
    return EngineFailure(f"The request could not reach its model: {type(error).__name__}.")
