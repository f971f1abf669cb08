"""The engine: token ids in, token ids out. It knows nothing of text, HTTP or Ray.

One owned thread; a step is schedule, run, choose. Requests join and leave the batch at every step, and none changes
another's answer.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phi3_serve import overload
from phi3_serve.core import EngineEvent, EngineRequest, Failed, Finished, Load, NewTokens, QueueLimits
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager
from phi3_serve.engine.kvcache.chunk import Chunk
from phi3_serve.engine.loader import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.linear import compute_dtype
from phi3_serve.engine.model.runner import ModelRunner
from phi3_serve.engine.sampling.processors import Settings
from phi3_serve.engine.sampling.prompt_lookup import drafted
from phi3_serve.engine.sampling.sampler import Choice, choose
from phi3_serve.engine.sampling.stopping import Stopping, token_bytes
from phi3_serve.engine.sampling.strategies import decoding_for
from phi3_serve.engine.scheduler import Plan, Scheduler
from phi3_serve.errors import (
    EngineFailure,
    InvalidRequest,
    Phi3ServeError,
    RequestTimeout,
)

logger = logging.getLogger("phi3_serve")


@dataclass(frozen=True, slots=True)
class StepStats:
    """One step, for whoever watches."""

    num_tokens: int  # run through the model
    num_keys: int  # read by attention, for all of them
    num_ready: int  # requests whose next tokens were chosen
    seconds: float


class Engine:
    """``core.Engine`` with continuous batching."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        queue: QueueLimits | None = None,
        stuck_after_s: float = 300.0,
        sizes: EngineSizes | None = None,
        releases_weights: bool = False,
        on_step: Callable[[StepStats], None] | None = None,
        on_breakdown: Callable[[Exception], None] | None = None,
    ) -> None:
        """Start the thread.

        ``stuck_after_s``: a step that takes longer is a hung forward pass. ``releases_weights`` leaves
        ``loaded.model`` without the weights held in another form. ``on_breakdown`` is called on the engine's thread
        when it cannot go on, before the requests in flight are failed.
        """
        cache_dtype = compute_dtype(loaded.model.dtype, loaded.model.device)
        sizes = sizes or EngineSizes.fitting(loaded.model, cache_dtype)
        self.blocks = BlockManager(sizes.num_blocks, prefix_cache=sizes.prefix_cache)
        self._scheduler = Scheduler(self.blocks, token_budget=sizes.token_budget, max_rows=sizes.max_rows)
        self._runner = ModelRunner(loaded.model, num_blocks=sizes.num_blocks, releases_weights=releases_weights)
        self._vocabulary = token_bytes(loaded.tokenizer)  # half a second for 32,000 tokens
        self._max_rows = sizes.max_rows
        self.queue = queue or QueueLimits()  # may be replaced at any time
        self._stuck_after_s = stuck_after_s
        self._on_step = on_step
        self._on_breakdown = on_breakdown
        self._generations: dict[str, Generation] = {}  # all that are owed an event
        self._arrived: deque[Generation] = deque()
        self._aborted: deque[Generation] = deque()
        self._step_began: float | None = None  # time.monotonic(); None between steps
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run_steps, name="phi3-engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> None:
        """Queue ``request``; see ``core.Engine``."""
        settings = Settings(request)
        stopping = Stopping(settings, self._vocabulary)
        decoding = decoding_for(request, settings, stopping, self._runner.rope.long_from)
        generation = Generation(request, on_event, decoding)
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise EngineFailure("The engine is not running.")
            self._require_capacity(generation)
            self._generations[request.request_id] = generation
            self._arrived.append(generation)
            self._changed.notify()

    @property
    def load(self) -> Load:
        """The load as it is now."""
        with self._changed:
            num_running = sum(generation.is_running for generation in self._generations.values())
            num_waiting = len(self._generations) - num_running
        used = self.blocks.num_blocks - self.blocks.num_available
        return Load(num_running, num_waiting, self.blocks.num_blocks, used)

    def _require_capacity(self, newcomer: Generation) -> None:
        limits = self.queue
        if self._num_beyond_rows(newcomer) > limits.requests:
            raise overload.queue_is_full(limits.requests)
        waiting = [len(g.request.prompt_ids) for g in self._generations.values() if not g.is_running]
        if waiting and sum(waiting) + len(newcomer.request.prompt_ids) > limits.tokens:
            raise overload.waiting_prompts_are_too_long(sum(waiting), limits.tokens)

    def _num_beyond_rows(self, newcomer: Generation) -> int:
        """How many requests would have to wait, were every row of a step taken: the first may take any number."""
        num_rows = 0
        in_flight = [*self._generations.values(), newcomer]
        for number, generation in enumerate(in_flight):
            num_rows += generation.num_rows
            if number and num_rows > self._max_rows:
                return len(in_flight) - number
        return 0

    def abort(self, request_id: str) -> None:
        """Stop a request within one step; see ``core.Engine``."""
        with self._changed:
            generation = self._generations.pop(request_id, None)
            if generation is None:
                return
            if generation in self._arrived:
                self._arrived.remove(generation)
            else:
                self._aborted.append(generation)
            self._changed.notify()

    def check_health(self) -> None:
        """EngineFailure if the thread is dead or stuck in one step."""
        if not self._thread.is_alive():
            raise EngineFailure("The engine's thread is dead.")
        began = self._step_began
        if began is not None and (stuck_s := time.monotonic() - began) > self._stuck_after_s:
            raise EngineFailure(f"The engine has been in one step for {stuck_s:.0f} s.")

    def close(self) -> None:
        """Fail all requests and stop the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run_steps(self) -> None:
        try:
            while self._collect():
                self._step_began = time.monotonic()
                self._step()
                self._step_began = None
        except Exception as error:
            logger.critical("the engine cannot go on", exc_info=error)
            if self._on_breakdown is not None:
                self._on_breakdown(error)
        finally:
            with self._changed:
                self._closing = True
                orphans = list(self._generations.values())
                self._generations.clear()
            for generation in orphans:
                self._hand_over(
                    generation, Failed(EngineFailure("The engine stopped before the request was answered."))
                )

    def _collect(self) -> bool:
        """Wait for work and take over who came and who went; False when the engine is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._arrived or self._aborted or self._scheduler.has_work)
            while self._arrived:
                self._scheduler.add(self._arrived.popleft())
            while self._aborted:
                self._scheduler.remove(self._aborted.popleft())
            return not self._closing

    def _step(self) -> None:
        began = time.perf_counter()
        self._end_late()
        self._draft()
        plan = self._scheduler.schedule()
        for generation in plan.rejected:
            self._answer(generation, Failed(InvalidRequest(self._too_large(generation), "max_length")))
        chunks = list(plan.all_chunks())
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_keys = sum(chunk.end for chunk in chunks)
        if chunks:
            self._run_and_choose(plan, chunks)
        if self._on_step is not None:
            self._on_step(
                StepStats(
                    num_tokens=num_tokens,
                    num_keys=num_keys,
                    num_ready=len(plan.ready),
                    seconds=time.perf_counter() - began,
                )
            )

    def _run_and_choose(self, plan: Plan, chunks: Sequence[Chunk]) -> None:
        try:
            self._runner.copy_blocks([pair for pairs in plan.copies.values() for pair in pairs])
            logits = self._runner.run(chunks)
        except Exception as error:
            self._fail_all(list(plan.chunks), error)
            return
        for chunk in chunks:
            chunk.sequence.num_cached = chunk.end
        self._choose(plan, logits)

    @torch.inference_mode()
    def _choose(self, plan: Plan, logits: Tensor) -> None:
        choices, first = [], 0
        for generation in plan.ready:
            decoding = generation.decoding
            mine = range(first, first + sum(chunk.num_logits for chunk in plan.chunks[generation]))
            first = mine.stop
            num_rows = len(decoding.rows)
            of_rows = decoding.begin(self.blocks)
            shadows = [mine[num_rows + at] for at in of_rows] if decoding.shadows else []
            choices.append(Choice(decoding, [mine[at] for at in of_rows], shadows))
        choose(choices, logits, self.blocks)
        for generation, choice in zip(plan.ready, choices, strict=True):
            self._report(generation, choice)

    def _report(self, generation: Generation, choice: Choice) -> None:
        decoding = generation.decoding
        if choice.error is not None:
            self._finish(generation, Failed(choice.error))
            return
        if choice.new_tokens and generation.request.stream and decoding.num_rows == 1:
            self._tell(generation, NewTokens(tuple(choice.new_tokens)))
        if decoding.is_done:
            self._finish(generation, Finished(decoding.result()))
        elif decoding.num_rows == 1:
            decoding.rows[0].make_known(self.blocks)

    def _draft(self) -> None:
        for generation in self._scheduler.running:
            count = generation.request.parameters.prompt_lookup_num_tokens
            if not count or generation.num_pending != 1 or generation.decoding.shadows:
                continue
            (sequence,) = generation.decoding.rows
            room = min(count, generation.request.max_length - len(sequence) - 1, sequence.room_for_draft())
            sequence.draft = drafted(sequence.tokens, room) if room > 0 else ()

    def _end_late(self) -> None:
        now = time.monotonic()
        late = [g for g in (*self._scheduler.running, *self._scheduler.waiting) if now >= g.request.deadline]
        for generation in late:
            self._finish(generation, Failed(RequestTimeout("The request did not finish in time.")))
        kept_waiting = [g for g in self._scheduler.waiting if now >= g.request.begin_by and not g.has_begun]
        for generation in kept_waiting:
            self._finish(generation, Failed(overload.waited_too_long()))

    def _too_large(self, generation: Generation) -> str:
        room = self.blocks.num_blocks * BLOCK_SIZE
        return (
            f"The request needs more than the {room} tokens that the memory for keys and values holds; "
            "ask for a shorter answer or for fewer beams or sequences."
        )

    def _fail_all(self, generations: list[Generation], error: Exception) -> None:
        """The forward pass failed; whose fault that is cannot be told.

        Raises:
            AcceleratorError: an assert on the device, say, after which this process cannot use it any more.
        """
        if isinstance(error, torch.AcceleratorError):
            raise error
        logger.error("a step of %d requests failed", len(generations), exc_info=error)
        failure: Phi3ServeError = EngineFailure(f"Generation failed: {type(error).__name__}.")
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            failure = overload.memory_is_full()
        for generation in generations:
            self._finish(generation, Failed(failure))

    def _finish(self, generation: Generation, event: EngineEvent) -> None:
        self._scheduler.remove(generation)
        self._answer(generation, event)

    def _answer(self, generation: Generation, event: EngineEvent) -> None:
        """The last event of a request, unless it was aborted meanwhile."""
        with self._changed:
            if self._generations.pop(generation.request.request_id, None) is None:
                if generation in self._aborted:
                    self._aborted.remove(generation)
                return
        self._hand_over(generation, event)

    def _tell(self, generation: Generation, event: EngineEvent) -> None:
        if generation.request.request_id in self._generations:
            self._hand_over(generation, event)

    def _hand_over(self, generation: Generation, event: EngineEvent) -> None:
        """A listener that raises, because its event loop is closed say, costs its own request only."""
        try:
            generation.on_event(event)
        except Exception:
            logger.exception("the listener of request %s failed", generation.request.request_id)
            self.abort(generation.request.request_id)
