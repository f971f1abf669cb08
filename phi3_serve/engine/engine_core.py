"""The steps of the engine: schedule, run, choose. No thread, no queue limits, no callbacks."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from traceback import clear_frames
from typing import Any

import torch
from torch import Tensor

from phi3_serve import overload
from phi3_serve.core.adapter import Adapter
from phi3_serve.core.engine_event import EngineEvent, Finished, NewTokens, ScoredPrompt
from phi3_serve.core.engine_info import EngineInfo
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.engine.adapters.applied import check_adapters
from phi3_serve.engine.adapters.reader import read_adapter
from phi3_serve.engine.cache_capacity import CacheCapacity
from phi3_serve.engine.device import compute_capability, device_name
from phi3_serve.engine.error_kind import kind_of
from phi3_serve.engine.freed_memory import return_freed_memory
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.kvcache.block_manager import BLOCK_SIZE, BlockManager
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import block_bytes
from phi3_serve.engine.model.decoder import sliding_window
from phi3_serve.engine.model.select import RunnerFactory, Sizes, new_runner
from phi3_serve.engine.model.self_test import self_test
from phi3_serve.engine.quantization import weight_bytes
from phi3_serve.engine.sampling.device_sampler import NOT_CHOSEN, ChosenTokens
from phi3_serve.engine.sampling.drawing import scores_are_invalid
from phi3_serve.engine.sampling.logprobs import token_logprobs
from phi3_serve.engine.sampling.prompt_lookup import propose_draft
from phi3_serve.engine.sampling.sampler import SamplingTask, advance, choose_tokens
from phi3_serve.engine.sampling.stopping import StoppingCriteria, token_bytes
from phi3_serve.engine.sampling.strategies.base import LogitIndices
from phi3_serve.engine.sampling.strategies.select import strategy_for
from phi3_serve.engine.scheduler import Plan, Scheduler
from phi3_serve.engine_statistics import EngineStatistics
from phi3_serve.errors import EngineFailure, InvalidRequest, Phi3ServeError, RequestTimeout
from phi3_serve.prepare import check_vocabulary

logger = logging.getLogger("phi3_serve")

MASK_THREADS = 4  # a mask takes a thread 0.1 ms, mostly without Python's lock

Events = list[tuple[Generation, EngineEvent]]


@dataclass(frozen=True, slots=True)
class StepStats:
    """Measurements of one step."""

    num_tokens: int  # run through the model
    num_keys: int  # read by the attention of all sequences
    num_ready: int  # requests whose next tokens were chosen
    seconds: float


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step produced."""

    stats: StepStats
    events: Events = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Task:
    """A request whose next tokens are chosen in a step."""

    generation: Generation
    sampling: SamplingTask
    sequences: list[CachedSequence]  # the rows of its strategy when the step was launched


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A request, some tokens of whose prompt are scored in a step."""

    generation: Generation
    logits: slice  # rows of the step's logits


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step whose tokens are not read yet."""

    logits: Tensor
    prompts: list[_Prompt]
    on_device: list[_Task]  # the device chooses their tokens
    on_host: list[_Task]
    tokens: ChosenTokens | None  # of ``on_device``, for one sequence after another


class EngineCore:
    """The model, its key-value cache and the scheduler. All methods must be called on one thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        sizes: Sizes,
        *,
        releases_weights: bool = False,
        make_runner: RunnerFactory = new_runner,
    ) -> None:
        """Prepare to run ``loaded``.

        ``releases_weights``: see ``Decoder``.

        Raises:
            CheckpointError: the memory beside the weights is not enough, or the weights give no numbers.
        """
        self._weight_bytes = weight_bytes(loaded.model)  # before the runner releases some of them
        self.runner = make_runner(loaded.model, sizes, releases_weights=releases_weights)
        self_test(self.runner, _usual_token(loaded))
        return_freed_memory()  # of weights as they were before the runner's trials packed them, and of the self-test
        self.sizes = self.runner.sizes
        self.blocks = BlockManager(self.sizes.num_blocks, prefix_cache=self.sizes.prefix_cache)
        window = sliding_window(loaded.model.config)
        self._capacity = CacheCapacity(self.sizes.num_blocks, token_budget=self.sizes.token_budget, window=window)
        self.scheduler = Scheduler(
            self.blocks,
            token_budget=self.sizes.token_budget,
            max_rows=self.sizes.max_rows,
            window=window,
            adapters=self.runner.adapters,
        )
        self.statistics = EngineStatistics()
        self._device_sampler = self.runner.sampler
        self._mask_pool = ThreadPoolExecutor(MASK_THREADS, "phi3-masks")  # starts threads when they are needed
        self._in_flight: _Launched | None = None
        self._vocab_size = loaded.vocab_size
        self._quantization, self._weight_format = loaded.quantization, loaded.weight_format
        self._vocabulary = token_bytes(loaded.tokenizer)  # takes half a second for 32,000 tokens

    def close(self) -> None:
        """End the threads that compute masks."""
        self._mask_pool.shutdown(wait=True, cancel_futures=True)

    @property
    def info(self) -> EngineInfo:
        """What the model runs on."""
        decoder, kernels, num_blocks = self.runner.decoder, self.runner.kernels, self.sizes.num_blocks
        capability = compute_capability(decoder.device)
        dtype = str(decoder.dtype).removeprefix("torch.")
        return EngineInfo(
            device=device_name(decoder.device),
            compute_capability=None if capability is None else "{}.{}".format(*capability),
            dtype=dtype,
            weight_dtype=str(decoder.weight_dtype).removeprefix("torch."),
            quantization=self._quantization,
            kv_cache_dtype=self.sizes.kv_cache_dtype if self.sizes.kv_cache_dtype != "auto" else dtype,
            kernels=kernels.name,
            cuda_graphs=self.runner.cuda_graphs,
            flash_attention=self.runner.flash_attention,
            replaced_kernels=self.runner.replaced_kernels,
            cache_tokens=num_blocks * BLOCK_SIZE,
            cache_bytes=num_blocks * block_bytes(decoder.config, decoder.dtype, self.sizes.kv_cache_dtype),
            weight_bytes=self._weight_bytes,
            weight_format=self._weight_format,
        )

    def load_adapter(self, name: str, directory: Path) -> Adapter:
        """Read an adapter for the model. Like ``generation``, this method may be called on any thread.

        Raises:
            CheckpointError: see ``read_adapter``; or the device has too little memory for it.
        """
        decoder = self.runner.decoder
        return self.runner.prepare_adapter(read_adapter(name, directory, decoder.config, decoder.dtype))

    def generation(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> Generation:
        """A generation for ``request``. Unlike most other methods, this one may be called on any thread.

        Raises:
            InvalidRequest: a token id is not in the model's vocabulary, with which a kernel would read beyond a
                tensor; the key-value cache is too small for the request; or its adapters are too large together.
            ValueError: a structured output is wanted, and the request has no constraint for it.
        """
        if request.parameters.structured_output is not None and request.constraint is None:
            raise ValueError("a structured output needs a constraint")
        check_vocabulary(request, self._vocab_size)
        check_adapters(request.adapters)
        if self.runner.adapters is not None:
            self.runner.adapters.check(request.adapters)
        request = self._capacity.fitted(request)
        stopping = StoppingCriteria(request, self._vocabulary)
        strategy = strategy_for(request, stopping, self.runner.decoder.rope.long_factors_from)
        return Generation(request, on_event, strategy)

    def expire(self) -> Events:
        """Fail the requests whose time is over."""
        now = time.monotonic()
        events: Events = []
        for generation in [*self.scheduler.running, *self.scheduler.waiting]:
            if now >= generation.request.deadline:
                events.append(self._fail(generation, RequestTimeout("The request did not finish in time.")))
            elif now >= generation.request.begin_by and not generation.has_started:
                events.append(self._fail(generation, overload.waited_too_long()))
        return events

    def schedule(self) -> Plan:
        """Plan the next step, which ``run`` then runs."""
        plan = self.scheduler.schedule()
        self._count_starts(plan)
        self._add_drafts(plan)
        return plan

    def run(self, plan: Plan) -> StepOutput:
        """Run the step that was planned last, and choose tokens.

        If the device chooses all tokens of a step, they are read one step later, when the next one runs already.
        """
        started = time.perf_counter()
        events: Events = [(generation, Failed(self._too_large())) for generation in plan.rejected]
        chunks = plan.all_chunks
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_keys = sum(chunk.end for chunk in chunks)
        if chunks:
            self.statistics.step_tokens.observe(num_tokens)
            self.statistics.step_sequences.observe(len(chunks))
        before, self._in_flight = self._in_flight, None
        launched: _Launched | None = None
        if plan.chunks:
            try:
                launched = self._launch(plan)
            except Exception as error:
                events += self._recover(plan, error)
        if before is not None:
            events += self._finish(before)
        if launched is not None and (launched.on_host or launched.prompts):
            events += self._finish(launched)
        elif launched is not None and launched.on_device:
            self._in_flight = launched
        stats = StepStats(num_tokens, num_keys, len(plan.ready), time.perf_counter() - started)
        return StepOutput(stats, events)

    def _add_drafts(self, plan: Plan) -> None:
        """Draft for the requests that ask for it, with equal shares of the tokens that the step has left."""
        drafting = [generation for generation in plan.ready if generation.num_draftable > 0]
        for number, generation in enumerate(drafting):
            share = plan.num_tokens_left // (len(drafting) - number)
            if (count := min(generation.num_draftable, share)) > 0:
                draft = propose_draft(generation.strategy.rows[0].tokens, count)
                draft = generation.strategy.permitted(draft)
                self.scheduler.add_draft(plan, generation, draft)
                if num_drafted := len(generation.strategy.rows[0].draft):
                    self.statistics.num_drafts += 1
                    self.statistics.num_draft_tokens += num_drafted

    def _count_starts(self, plan: Plan) -> None:
        """Count how long requests have waited that start now, and how much of their prompts the prefix cache has."""
        statistics = self.statistics
        statistics.num_preemptions = self.scheduler.num_preemptions
        for generation in plan.started:
            if generation.num_starts > 1:  # after a preemption
                continue
            statistics.queue_s.observe(generation.stopwatch.timings().queue_s)
            for sequences in generation.strategy.sequences_by_prompt:
                for sequence in sequences[:1]:
                    statistics.prefix_cache_queries += sequence.num_prompt_tokens
                    statistics.prefix_cache_hits += sequence.num_cached

    @torch.inference_mode()
    def _launch(self, plan: Plan) -> _Launched:
        """Run ``plan`` and let the device choose the tokens that it can choose."""
        chunks = plan.all_chunks
        for generation in plan.ready:
            generation.strategy.start_masks(self._mask_pool, self._vocab_size)
        self.runner.copy_blocks(plan.all_copies)
        logits = self.runner.run(chunks)
        self.scheduler.commit(plan)
        tasks, prompts = self._tasks(plan)
        on_device = self._for_device(tasks)
        identities = set(map(id, on_device))
        on_host = [task for task in tasks if id(task) not in identities]
        return _Launched(logits, prompts, on_device, on_host, self._choose_on_device(on_device, logits))

    def _tasks(self, plan: Plan) -> tuple[list[_Task], list[_Prompt]]:
        """What is done with the logits of ``plan``: tokens are chosen, and prompts are scored."""
        tasks: list[_Task] = []
        prompts: list[_Prompt] = []
        ready = set(plan.ready)
        start = 0
        for generation, chunks in plan.chunks.items():
            firsts = []  # for each chunk its first row of the logits that tokens are chosen with
            for chunk in chunks:
                firsts.append(start + chunk.num_prompt_logits)
                if chunk.num_prompt_logits:
                    prompts.append(_Prompt(generation, slice(start, firsts[-1])))
                start += chunk.num_logits
            if generation in ready:
                tasks.append(self._task(generation, firsts))
        return tasks, prompts

    def _task(self, generation: Generation, logits: Sequence[int]) -> _Task:
        """``logits``: for each sequence that was run its row of the step's logits."""
        strategy = generation.strategy
        num_run_rows = len(strategy.rows)
        run_row_of = strategy.begin(self.blocks)
        rows = [logits[row] for row in run_row_of]
        negative = [logits[num_run_rows + row] for row in run_row_of] if strategy.negative_prompt_rows else []
        return _Task(generation, SamplingTask(strategy, LogitIndices(rows, negative)), list(strategy.rows))

    def _for_device(self, tasks: Sequence[_Task]) -> list[_Task]:
        if self._device_sampler is None:
            return []
        chosen, num_rows = [], 0
        for task in tasks:
            if self._device_sampler.supports(task.sampling.strategy):
                num_rows += len(task.sequences)
                if num_rows > self._device_sampler.max_rows:
                    break
                chosen.append(task)
        return chosen

    def _choose_on_device(self, tasks: Sequence[_Task], logits: Tensor) -> ChosenTokens | None:
        if self._device_sampler is None or not tasks:
            return None
        rows = [row for task in tasks for row in task.sampling.logits.rows]
        settings = [task.sampling.strategy.settings for task in tasks for _ in task.sequences]
        sequences = [sequence for task in tasks for sequence in task.sequences]
        is_every_row = rows == list(range(len(logits)))
        tokens = self._device_sampler.launch(logits if is_every_row else logits[rows], settings, sequences)
        for index, sequence in enumerate(sequences):
            sequence.expect_token(index)
        return tokens

    @torch.inference_mode()
    def _finish(self, launched: _Launched) -> Events:
        """Give each request its next tokens, and score prompts; returns the events of all."""
        if launched.on_host:
            choose_tokens([task.sampling for task in launched.on_host], launched.logits, self.blocks)
            if any(isinstance(task.sampling.error, EngineFailure) for task in launched.on_host):
                self.runner.check_device()
        if launched.tokens is not None:
            tokens = iter(launched.tokens.read())
            for task in launched.on_device:
                self._append(task, [next(tokens) for _ in task.sequences], launched.logits)
        scored = self._score_prompts(launched)  # at last: a request that fails here needs no more tokens
        now = time.monotonic()
        events = scored + [
            event
            for task in (*launched.on_device, *launched.on_host)
            if not task.generation.is_removed
            for event in self._events(task.generation, task.sampling, now)
        ]
        self.statistics.end_step(now)
        return events

    def _score_prompts(self, launched: _Launched) -> Events:
        """Add log-probabilities to prompts; returns an event for each prompt that is complete."""
        events: Events = []
        for prompt in launched.prompts:
            generation, logits = prompt.generation, launched.logits[prompt.logits]
            if generation.is_removed:
                continue
            try:
                count = generation.request.parameters.prompt_logprobs or 0
                tokens = generation.unscored_ids[: len(logits)]
                generation.score(token_logprobs(logits, tokens, count, with_ranks=True))
            except Exception as error:
                events += self._fail_all([generation], error)
                continue
            if not generation.num_unscored:
                events.append((generation, ScoredPrompt(tuple(generation.prompt_logprobs))))
        return events

    def _append(self, task: _Task, tokens: Sequence[int], logits: Tensor) -> None:
        """Append the tokens that the device chose to the sequences that still need them."""
        if task.generation.is_removed:
            return
        token_of = {id(sequence): token for sequence, token in zip(task.sequences, tokens, strict=True)}
        task.sampling.tokens = [token_of[id(sequence)] for sequence in task.sampling.strategy.rows]
        if NOT_CHOSEN in task.sampling.tokens:
            task.sampling.error = scores_are_invalid()
        else:
            advance(task.sampling, 0, logits, self.blocks)

    def _events(self, generation: Generation, task: SamplingTask, now: float) -> Events:
        strategy = generation.strategy
        if task.error is not None:
            return [self._fail(generation, task.error)]
        self._count_tokens(generation, task, now)
        events: Events = []
        if task.new_tokens and generation.request.stream and strategy.num_rows == 1:
            logprobs = strategy.latest_logprobs(len(task.new_tokens))
            events.append((generation, NewTokens(tuple(task.new_tokens), logprobs)))
        if strategy.is_done:
            timings = generation.stopwatch.timings()
            self.statistics.decode_s.observe(timings.answer_s)
            events.append((generation, Finished(strategy.result(), timings)))
            self.scheduler.remove(generation)
        return events

    def _count_tokens(self, generation: Generation, task: SamplingTask, now: float) -> None:
        statistics, stopwatch = self.statistics, generation.stopwatch
        if generation.strategy.num_rows == 1:
            num_tokens = num_of_each = len(task.new_tokens)
            if num_tokens > 1:
                statistics.num_accepted_tokens += num_tokens - 1
        else:
            num_tokens, num_of_each = generation.strategy.num_rows if task.tokens is None else len(task.tokens), 1
        statistics.generation_tokens += num_tokens
        if (since := stopwatch.last_token_at) is not None and num_of_each:
            statistics.count_tokens(num_of_each, since=since)
        stopwatch.note_tokens(now)
        if since is None:
            statistics.prompt_tokens += len(generation.request.prompt_ids)
            statistics.prefill_s.observe(stopwatch.timings().prompt_s)

    def _fail(self, generation: Generation, error: Phi3ServeError) -> tuple[Generation, EngineEvent]:
        self.scheduler.remove(generation)
        stopwatch = generation.stopwatch
        return generation, Failed(error, None if stopwatch.started_at is None else stopwatch.timings())

    def _recover(self, plan: Plan, error: Exception) -> Events:
        """Go on after ``plan`` failed. A lack of memory costs at most the largest request."""
        if kind_of(error) != "memory" or plan.is_committed:
            return self._fail_all(list(plan.chunks), error)
        self.runner.check_device()  # what a library says about memory is not always about memory
        num_tokens = sum(chunk.num_tokens for chunk in plan.all_chunks)
        largest = self.scheduler.retreat(plan)
        limit = self.scheduler.budget.limit
        logger.warning("the device has no memory for a step of %d tokens; the limit is %d now", num_tokens, limit)
        clear_frames(error.__traceback__)  # they hold the tensors of the failed step
        self.runner.free_memory()
        return [] if largest is None else [self._fail(largest, overload.memory_is_full())]

    def _fail_all(self, generations: Sequence[Generation], error: Exception) -> Events:
        """Fail all requests of a forward pass that failed, because the one at fault is unknown.

        Raises:
            AcceleratorError: for example after a failed assertion on the device; this process cannot use it any more.
        """
        if (kind := kind_of(error)) == "device":
            raise error
        self.runner.check_device()
        logger.error("a step of %d requests failed", len(generations), exc_info=error)
        failure: Phi3ServeError = EngineFailure(f"Generation failed: {type(error).__name__}.")
        if kind == "memory":
            self.runner.free_memory()
            failure = overload.memory_is_full()
        return [self._fail(generation, failure) for generation in generations]

    def _too_large(self) -> InvalidRequest:
        num_tokens = self.blocks.num_blocks * BLOCK_SIZE
        return InvalidRequest(
            f"The request needs more than the {num_tokens} tokens that the key-value cache holds; "
            "ask for a shorter answer, or for fewer beams or sequences.",
            "max_length",
        )


def _usual_token(loaded: LoadedModel) -> int:
    """A token that conversations begin with, or any if the tokenizer does not have it."""
    tokenizer: Any = loaded.tokenizer
    token = tokenizer.convert_tokens_to_ids("<|user|>")
    return token if isinstance(token, int) and 0 <= token < loaded.vocab_size else 0
