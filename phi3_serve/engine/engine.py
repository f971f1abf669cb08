"""The engine: token ids in, token ids out, without text, HTTP or Ray.

One thread runs step after step. Requests join and leave the batch between steps, and none changes another's answer.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from phi3_serve.core.adapter import Adapter
from phi3_serve.core.engine_event import EngineEvent, Started
from phi3_serve.core.engine_info import EngineInfo, Load, QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.engine.admission import QueueAdmission
from phi3_serve.engine.engine_core import EngineCore, StepStats
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import FittingSizes
from phi3_serve.engine.model.select import RunnerFactory, Sizes, new_runner
from phi3_serve.engine.reports import Reports
from phi3_serve.engine_statistics import EngineStatistics
from phi3_serve.errors import EngineFailure

logger = logging.getLogger("phi3_serve")


class Engine:
    """``core.Engine`` with continuous batching."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        queue: QueueLimits | None = None,
        stuck_after_s: float = 300.0,
        sizes: Sizes | None = None,
        releases_weights: bool = False,
        on_step: Callable[[StepStats], None] | None = None,
        on_breakdown: Callable[[Exception], None] | None = None,
        make_runner: RunnerFactory = new_runner,
    ) -> None:
        """Start the thread.

        Args:
            loaded: the model. With ``releases_weights`` it loses the weights that the engine holds in another form.
            queue: limits of the queue.
            stuck_after_s: seconds after which ``check_health`` reports a step as stuck.
            sizes: by default the largest that fit into the memory.
            releases_weights: see ``loaded``.
            on_step: called on the engine's thread after each step.
            on_breakdown: called on the engine's thread if it cannot go on, before the requests in flight fail.
            make_runner: makes what runs the model.
        """
        self._core = EngineCore(
            loaded, sizes or FittingSizes(), releases_weights=releases_weights, make_runner=make_runner
        )
        self.blocks = self._core.blocks
        self._admission = QueueAdmission(queue or QueueLimits(), max_rows=self._core.sizes.max_rows)
        self._reports = Reports(on_listener_failure=self.abort)
        self._stuck_after_s = stuck_after_s
        self._on_step = on_step
        self._on_breakdown = on_breakdown
        self._arrived: deque[Generation] = deque()
        self._aborted: deque[Generation] = deque()
        self._step_started: float | None = None  # time.monotonic(); None between steps
        self._is_closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run_steps, name="phi3-engine", daemon=True)
        self._thread.start()

    @property
    def queue(self) -> QueueLimits:
        """The limits of the queue. They may be replaced at any time."""
        return self._admission.limits

    @queue.setter
    def queue(self, limits: QueueLimits) -> None:
        self._admission.limits = limits

    @property
    def info(self) -> EngineInfo:
        """What the engine runs on."""
        return self._core.info

    @property
    def load(self) -> Load:
        """The current load."""
        in_flight = self._reports.in_flight
        num_running = sum(generation.is_running for generation in in_flight)
        num_preempted = sum(generation.has_started and not generation.is_running for generation in in_flight)
        num_used = self.blocks.num_blocks - self.blocks.num_available
        num_waiting = len(in_flight) - num_running
        return Load(num_running, num_waiting, self.blocks.num_blocks, num_used, num_preempted)

    @property
    def statistics(self) -> EngineStatistics:
        """What the engine has counted since its start."""
        return self._core.statistics

    def submit(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> None:
        """Queue ``request``; see ``core.Engine``."""
        generation = self._core.generation(request, on_event)
        with self._changed:
            if self._is_closing or not self._thread.is_alive():
                raise EngineFailure("The engine is not running.")
            self._admission.check(generation, self._reports.in_flight)
            self._reports.open(generation)
            self._arrived.append(generation)
            self._changed.notify()

    def announce_start(self, request_id: str) -> bool:
        """Whether the request still waits, and announces its start; see ``core.Engine``."""
        generation = self._reports.find(request_id)
        if generation is None:
            return False
        # The scheduler counts the start before the engine's thread reads announces_start. So no start is missed.
        generation.announces_start = True
        return not generation.has_started

    def abort(self, request_id: str) -> None:
        """Stop a request within one step; see ``core.Engine``."""
        with self._changed:
            generation = self._reports.withdraw(request_id)
            if generation is None:
                return
            if generation in self._arrived:
                self._arrived.remove(generation)
            else:
                self._aborted.append(generation)
            self._changed.notify()

    def load_adapter(self, name: str, directory: str) -> Adapter:
        """Read an adapter; see ``core.Engine``."""
        return self._core.load_adapter(name, Path(directory))

    def check_health(self) -> None:
        """Raise EngineFailure if the thread is dead or stuck in one step."""
        if not self._thread.is_alive():
            raise EngineFailure("The engine's thread is dead.")
        started = self._step_started
        if started is not None and (stuck_s := time.monotonic() - started) > self._stuck_after_s:
            raise EngineFailure(f"The engine has been in one step for {stuck_s:.0f} s.")

    def close(self) -> None:
        """Fail all requests and wait until the thread ends."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()
        self._core.close()

    def _run_steps(self) -> None:
        try:
            while self._wait_for_work():
                self._step_started = time.monotonic()
                self._step()
                self._step_started = None
        except Exception as error:
            logger.critical("the engine cannot go on", exc_info=error)
            if self._on_breakdown is not None:
                self._on_breakdown(error)
        finally:
            with self._changed:
                self._is_closing = True
            stopped = Failed(EngineFailure("The engine stopped before the request was answered."))
            for generation in self._reports.in_flight:
                self._reports.deliver(generation, stopped)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do, and let requests join and leave. False if the engine closes."""
        scheduler = self._core.scheduler
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._arrived or self._aborted or scheduler.has_work)
            while self._arrived:
                scheduler.add(self._arrived.popleft())
            while self._aborted:
                scheduler.remove(self._aborted.popleft())
            return not self._is_closing

    def _step(self) -> None:
        for generation, event in self._core.expire():
            self._reports.deliver(generation, event)
        plan = self._core.schedule()
        for generation in plan.started:
            if generation.announces_start:
                generation.announces_start = False
                self._reports.deliver(generation, Started())
        output = self._core.run(plan)
        for generation, event in output.events:
            self._reports.deliver(generation, event)
        if self._on_step is not None:
            self._on_step(output.stats)
