"""The reference engine: ``transformers.generate`` on one thread, one request at a time.

Slow and right. It defines what every parameter means, and stays as the oracle of the tests once a faster
engine serves. Group beam search, which transformers 5 no longer has, is engine.group_beams.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from phi3_serve import core
from phi3_serve.core import EngineEvent, EngineRequest, Failed, Finished, NewTokens
from phi3_serve.engine.group_beams import GroupBeamSearch
from phi3_serve.engine.loader import LoadedModel
from phi3_serve.errors import (
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    Phi3ServeError,
    RequestTimeout,
)
from phi3_serve.parameters import GenerationParameters

logger = logging.getLogger("phi3_serve")

SECONDS_STUCK = 300.0  # without a finished step while a request runs: a hung forward pass
RETRY_AFTER_S = 5.0

# What of GenerationParameters is handed to generate(); lengths, seed, stop strings and group beams are dealt with here.
FORWARDED = (
    *("do_sample", "early_stopping", "num_beams", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff", "top_h", "repetition_penalty", "encoder_repetition_penalty"),
    *(
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "suppress_tokens",
    ),
    *(
        "begin_suppress_tokens",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "exponential_decay_length_penalty",
    ),
    *(
        "renormalize_logits",
        "remove_invalid_values",
        "guidance_scale",
        "num_return_sequences",
        "pad_token_id",
    ),
    *("bos_token_id", "eos_token_id", "max_time", "prompt_lookup_num_tokens"),
)


@dataclass(eq=False, slots=True)
class _Job:
    request: EngineRequest
    on_event: Callable[[EngineEvent], None]
    aborted: threading.Event = field(default_factory=threading.Event)


class ReferenceEngine:
    """``core.Engine`` over ``model.generate``."""

    def __init__(self, loaded: LoadedModel, *, max_waiting: int = 64) -> None:
        self._model = loaded.model
        self._tokenizer: PreTrainedTokenizerBase = loaded.tokenizer
        self._max_waiting = max_waiting
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._step_began = 0.0  # time.monotonic()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run_jobs, name="phi3-engine", daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, on_event: Callable[[EngineEvent], None]) -> None:
        """Queue ``request``; see ``core.Engine``."""
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise EngineFailure("The engine is not running.")
            if self._running is not None and len(self._waiting) >= self._max_waiting:
                raise Overloaded(
                    f"{len(self._waiting)} requests are waiting already, the limit is {self._max_waiting}.",
                    RETRY_AFTER_S,
                )
            self._waiting.append(_Job(request, on_event))
            self._changed.notify()

    def abort(self, request_id: str) -> None:
        """Stop a request within one token; see ``core.Engine``."""
        with self._changed:
            if self._running is not None and self._running.request.request_id == request_id:
                self._running.aborted.set()
            self._waiting = deque(job for job in self._waiting if job.request.request_id != request_id)

    def check_health(self) -> None:
        """EngineFailure if the thread is dead or stuck in one step."""
        if not self._thread.is_alive():
            raise EngineFailure("The engine's thread is dead.")
        stuck_s = time.monotonic() - self._step_began
        if self._running is not None and stuck_s > SECONDS_STUCK:
            raise EngineFailure(f"The engine has been in one step for {stuck_s:.0f} s.")

    def close(self) -> None:
        """Abort the running request, fail the waiting ones, stop the thread."""
        with self._changed:
            self._closing = True
            if self._running is not None:
                self._running.aborted.set()
            self._changed.notify()
        self._thread.join()

    def _run_jobs(self) -> None:
        try:
            while (job := self._next_job()) is not None:
                self._answer(job)
        finally:
            with self._changed:
                orphans = [*self._waiting] if self._running is None else [self._running, *self._waiting]
                self._waiting.clear()
                self._closing = True
            for job in orphans:
                job.on_event(Failed(EngineFailure("The engine stopped before the request was answered.")))

    def _next_job(self) -> _Job | None:
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._closing or bool(self._waiting))
            if self._closing:
                return None
            self._running = self._waiting.popleft()
            self._step_began = time.monotonic()
            return self._running

    def _answer(self, job: _Job) -> None:
        """Run one request; whatever goes wrong with it is its own and nobody else's."""
        event: EngineEvent
        try:
            event = Finished(self._generate(job))
        except Phi3ServeError as error:
            event = Failed(error)
        except Exception as error:
            event = Failed(self._translated(error, job.request))
        if not job.aborted.is_set():
            job.on_event(event)

    @staticmethod
    def _translated(error: Exception, request: EngineRequest) -> Phi3ServeError:
        """One of our errors for whatever transformers or torch raised."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            return ModelUnavailable("The GPU's memory does not hold this request now.", RETRY_AFTER_S)
        if isinstance(error, ValueError):  # transformers refuses a value or a combination
            return InvalidRequest(str(error).strip().split("\n", 1)[0])
        if isinstance(error, OverflowError) or "probability tensor contains" in str(error):
            return InvalidRequest("These parameters drive the scores beyond all numbers, to inf or nan.")
        logger.error("request %s failed", request.request_id, exc_info=error)
        return EngineFailure(f"Generation failed: {type(error).__name__}.")

    @torch.inference_mode()
    def _generate(self, job: _Job) -> tuple[core.Sequence, ...]:
        request, parameters = job.request, job.request.parameters
        self._raise_if_late(request)
        prompt = torch.tensor([request.prompt_ids], device=self._model.device)
        with torch.random.fork_rng(enabled=parameters.seed is not None):
            if parameters.seed is not None:
                torch.manual_seed(parameters.seed)
            output: Any = self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                stopping_criteria=self._stopping_criteria(job),
                streamer=_Streamer(job) if _streams_one_sequence(request) else None,
                custom_generate=_group_beam_search(parameters),
                return_dict_in_generate=True,
                output_scores=bool(parameters.output_scores),
                # new tokens, not totals: these win over whatever the checkpoint's own generation config says
                min_new_tokens=max(0, request.min_length - len(request.prompt_ids)),
                max_new_tokens=request.max_length - len(request.prompt_ids),
                **self._arguments(parameters),
            )
        if not job.aborted.is_set():
            self._raise_if_late(request)
        return self._sequences(output, request)

    def _stopping_criteria(self, job: _Job) -> StoppingCriteriaList:
        criteria = StoppingCriteriaList([_Watch(job, self._mark_step)])
        if stop_strings := job.request.parameters.stop_strings:
            criteria.append(StopStringCriteria(self._tokenizer, stop_strings))
        return criteria

    def _arguments(self, parameters: GenerationParameters) -> dict[str, Any]:
        arguments = {name: value for name in FORWARDED if (value := getattr(parameters, name)) is not None}
        if parameters.sequence_bias is not None:
            arguments["sequence_bias"] = [[list(ids), bias] for ids, bias in parameters.sequence_bias]
        if parameters.negative_prompt_ids is not None:
            # generate() makes one row per beam or sequence of the prompt, but not of this one
            num_rows = max(parameters.num_beams or 1, parameters.num_return_sequences or 1)
            arguments["negative_prompt_ids"] = torch.tensor(
                [parameters.negative_prompt_ids] * num_rows, device=self._model.device
            )
        return arguments

    def _sequences(self, output: Any, request: EngineRequest) -> tuple[core.Sequence, ...]:
        scores = self._scores(output, request)
        sequences = []
        for row, ids in enumerate(output.sequences[:, len(request.prompt_ids) :].tolist()):
            ids, reason = _cut_at_end(ids, request)
            kept = None if scores is None else tuple(scores[row][: len(ids)])
            sequences.append(core.Sequence(tuple(ids), reason, kept))
        return tuple(sequences)

    def _scores(self, output: Any, request: EngineRequest) -> list[list[float]] | None:
        if not request.parameters.output_scores:
            return None
        rows: list[list[float]] = self._model.compute_transition_scores(
            output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=True
        ).tolist()
        return rows

    def _mark_step(self) -> None:
        self._step_began = time.monotonic()

    @staticmethod
    def _raise_if_late(request: EngineRequest) -> None:
        if time.monotonic() >= request.deadline:
            raise RequestTimeout("The request did not finish in time.")


class _Watch(StoppingCriteria):
    """Ends a generation that was aborted or is late, and tells the engine that it is alive."""

    def __init__(self, job: _Job, mark_step: Callable[[], None]) -> None:
        self._job = job
        self._mark_step = mark_step

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._mark_step()
        stop = self._job.aborted.is_set() or time.monotonic() >= self._job.request.deadline
        return torch.full((input_ids.shape[0],), stop, device=input_ids.device, dtype=torch.bool)


class _Streamer(BaseStreamer):
    """Hands on new token ids as generate() makes them; the first put is the prompt."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._saw_prompt and not self._job.aborted.is_set():
            self._job.on_event(NewTokens(tuple(value.flatten().tolist())))
        self._saw_prompt = True

    def end(self) -> None:
        pass


def _group_beam_search(parameters: GenerationParameters) -> GroupBeamSearch | None:
    if (parameters.num_beam_groups or 1) == 1:
        return None
    return GroupBeamSearch(
        num_groups=parameters.num_beam_groups or 1, diversity_penalty=parameters.diversity_penalty or 0.0
    )


def _streams_one_sequence(request: EngineRequest) -> bool:
    parameters = request.parameters
    return request.stream and (parameters.num_beams or 1) == 1 and (parameters.num_return_sequences or 1) == 1


def _cut_at_end(ids: list[int], request: EngineRequest) -> tuple[list[int], core.FinishReason]:
    """The ids without the padding behind the end, and why they end.

    generate() pads the shorter rows of its output, often with an id that also ends an answer.
    """
    ends = set(request.parameters.eos_token_ids())
    first_end = next((i for i, token in enumerate(ids) if token in ends), None)
    if first_end is not None:
        return ids[: first_end + 1], "stop"
    reached_a_stop_string = (
        bool(request.parameters.stop_strings) and len(request.prompt_ids) + len(ids) < request.max_length
    )
    return ids, "stop" if reached_a_stop_string else "length"
