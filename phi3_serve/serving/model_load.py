"""The load of a replica's model, tried until it succeeds.

A replica whose model cannot be loaded would fail in its constructor. Serve would then start it again and again, or call
the whole application failed and try no more. So the constructor returns all the same, and the tries go on.

Serve sends requests to every replica that runs. So a replica runs without its model only while no replica of its model
has one: before that it stays in its constructor, and it ends when another one has loaded.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.errors import CheckpointError
from phi3_serve.serving.load_policy import RetryPolicy, retry_policy
from phi3_serve.serving.load_status import LoadStatus, LoadStatusEntry
from phi3_serve.serving.loaded_replica import LoadedReplica, announce, deployment_of, last_loaded
from phi3_serve.serving.model_loading import RunningModel, load_model, release_memory
from phi3_serve.serving.other_replicas import Others, find_others
from phi3_serve.serving.replica_options import ReplicaOptions

logger = logging.getLogger("phi3_serve")

# How long the constructor waits for the end of a cause that passes by itself. Then the replica runs without its model.
PATIENCE_S = 60.0
WATCH_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class _Failure:
    error: CheckpointError
    policy: RetryPolicy
    delay_s: float  # to the next try


class ModelLoad:
    """The tries of one replica. ``replica`` is the name of its actor, or None outside Serve.

    ``on_loaded`` gets the model, and ``on_breakdown`` is called on its engine's thread when it cannot go on.
    ``on_fatal_error`` gets the reason when this process must end for another cause.
    """

    def __init__(
        self,
        options: ReplicaOptions,
        replica: str | None,
        on_loaded: Callable[[RunningModel], None],
        on_breakdown: Callable[[Exception], None],
        on_fatal_error: Callable[[str], None],
    ) -> None:
        self._options = options
        self._replica = replica
        self._on_loaded = on_loaded
        self._on_breakdown = on_breakdown
        self._on_fatal_error = on_fatal_error
        self._entry = LoadStatusEntry(replica)
        self._num_tries = 0
        self._is_running = False  # without its model
        self._background: asyncio.Task[None] | None = None
        self._announced: LoadedReplica | None = None

    @property
    def status(self) -> LoadStatus | None:
        """What was published last; None as soon as the model is loaded."""
        return self._entry.status

    async def start(self) -> None:
        """Load the model. Return when it is loaded, or when the replica is to run without it; then the tries go on.

        Raises:
            CheckpointError: the replica must not start. It is outside Serve, or it would replace replicas that answer,
                or a new process must try.
        """
        begun = time.monotonic()
        loaded_before = await self._last_loaded()  # Serve may show later that another replica runs than it announces
        while (failure := await self._try_once()) is not None:
            others = await self._others()
            is_rollout = others is Others.EARLIER_VERSION
            if others is None or (is_rollout and not failure.policy.passes):
                raise failure.error
            is_patient = failure.policy.passes and time.monotonic() - begun < PATIENCE_S
            self._is_running = others is Others.NONE and not is_patient and not self._options.required
            # If the ingress cannot learn that this replica has no model, it must not run.
            if await asyncio.to_thread(self._publish_failure, failure) and self._is_running:
                self._background = asyncio.create_task(self._go_on(failure, loaded_before))
                self._background.add_done_callback(self._end_if_broken)
                return
            await asyncio.sleep(failure.delay_s)
            if failure.policy.needs_new_process:
                raise failure.error

    async def announce_changes(self, engine: EngineInfo) -> None:
        """Announce what the engine runs on again if it has changed, unless another replica has loaded since.

        While Ray's head is away nothing is announced, and the next call tries again.
        """
        before = self._announced
        if before is None or before.engine == engine:
            return
        changed = replace(before, engine=engine)
        with suppress(Exception):  # Ray raises many kinds
            if await asyncio.to_thread(last_loaded, deployment_of(before.name)) == before:
                await asyncio.to_thread(announce, changed)
            self._announced = changed

    async def _others(self) -> Others | None:
        """The other replicas; None outside Serve."""
        if self._replica is None:
            return None
        while (found := await asyncio.to_thread(find_others, self._options)) is Others.UNKNOWN:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_INTERVAL_S)
        return found

    async def _last_loaded(self) -> LoadedReplica | None:
        """The replica that has loaded the model last; None if there was none. Waits while Ray's head is away."""
        while self._replica is not None:
            with suppress(Exception):  # Ray raises many kinds
                return await asyncio.to_thread(last_loaded, deployment_of(self._replica))
            await asyncio.sleep(WATCH_INTERVAL_S)
        return None

    async def _go_on(self, failure: _Failure | None, loaded_before: LoadedReplica | None) -> None:
        watching = asyncio.create_task(self._end_when_another_loads(loaded_before))
        while failure is not None:
            await asyncio.sleep(failure.delay_s)
            if failure.policy.needs_new_process:
                self._on_fatal_error("its model could not be loaded; a new process tries again")
            failure = await self._try_once(watching)
            if failure is not None:
                await asyncio.to_thread(self._publish_failure, failure)

    def _end_if_broken(self, background: asyncio.Task[None]) -> None:
        if not background.cancelled() and (error := background.exception()):
            self._on_fatal_error(f"the tries to load its model have ended: {type(error).__name__}: {error}")

    async def _end_when_another_loads(self, loaded_before: LoadedReplica | None) -> None:
        """Serve starts another replica instead, which gets no requests before it has its model."""
        while await self._last_loaded() in (None, loaded_before):  # noqa: ASYNC110 - Ray offers no event
            await asyncio.sleep(WATCH_INTERVAL_S)
        self._on_fatal_error(f"another replica has loaded {self._options.name}, and this one has not")

    async def _try_once(self, watching: asyncio.Task[None] | None = None) -> _Failure | None:
        """One try; None if the model is loaded. Then ``watching`` ends, before it can see this replica."""
        try:
            model = await asyncio.to_thread(load_model, self._options, self._on_breakdown, self._publish_progress)
            self._on_loaded(model)
        except Exception as error:  # of any library
            # without the traceback, whose frames hold parts of the model
            failure = self._failed(error)
        else:
            if watching is not None:
                watching.cancel()
            if self._replica is not None:
                await asyncio.to_thread(self._entry.clear)
                loaded = LoadedReplica(name=self._replica, version=self._options.version, engine=model.engine.info)
                await asyncio.to_thread(announce, loaded)
                self._announced = loaded
            return None
        if not failure.policy.needs_new_process:
            with suppress(Exception):  # as after an error of the device; the next try shows it
                await asyncio.to_thread(release_memory)
        return failure

    def _failed(self, error: Exception) -> _Failure:
        self._num_tries += 1
        policy, name = retry_policy(error), self._options.name
        if is_known := isinstance(error, CheckpointError):
            cause = type(error)(error.message)
        else:
            cause = CheckpointError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
        failure = _Failure(cause, policy, policy.delay_s(self._num_tries))
        logger.error(
            "%s cannot be loaded: %s (try %d; the next one in %.0f s)",
            *(name, cause.message, self._num_tries, failure.delay_s),
            exc_info=None if is_known else error,
        )
        return failure

    def _publish_failure(self, failure: _Failure) -> bool:
        return self._publish(failure.error.message, time.time() + failure.delay_s, heals=failure.policy.heals)

    def _publish_progress(self, text: str) -> None:
        self._publish(text)

    def _publish(self, text: str, next_try_at: float | None = None, *, heals: bool = True) -> bool:
        return self._entry.publish(
            LoadStatus(
                model=self._options.name,
                text=text,
                num_tries=self._num_tries,
                next_try_at=next_try_at,
                heals=heals,
                is_running=self._is_running,
            )
        )
