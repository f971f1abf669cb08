"""llama.cpp, which ollama runs, in this process by the package llama-cpp-python; tried with version 0.3.36.

The package is no dependency of phi3-serve. Requests share steps through its batches with several sequences, as in
``llama-batched-bench`` of llama.cpp.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from phi3_serve.bench.competitors import Run
from phi3_serve.bench.shapes import Model, config
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.engine.engine_core import StepStats
from phi3_serve.errors import EngineFailure

FILE_TYPES: Mapping[str, str] = {"none": "F16", "int8": "Q8_0", "int4": "Q4_K_M"}
"""llama.cpp's type for each quantization of ours."""

_MARGIN = 256  # tokens; llama.cpp rounds the context of a sequence up to a multiple of this


@dataclass(slots=True)
class _Sequence:
    """A request in one of the sequences of llama.cpp's cache."""

    number: int  # of the sequence
    began: float
    wanted: int  # tokens of the answer
    pending: Sequence[int]  # tokens that the next step computes
    length: int = 0  # tokens in the cache
    made: int = 0


@dataclass(slots=True)
class _Loop:
    """One closed loop: who waits, who runs, what was measured."""

    waiting: Iterator[EngineRequest]
    free: list[int]  # numbers of sequences
    run: Run = field(default_factory=lambda: Run(0.0, 0))
    running: list[_Sequence] = field(default_factory=list)

    def admit(self) -> None:
        """Let requests begin in the free sequences."""
        while self.free and (request := next(self.waiting, None)) is not None:
            wanted = request.max_length - len(request.prompt_ids)
            self.running.append(_Sequence(self.free.pop(), time.perf_counter(), wanted, request.prompt_ids))


class LlamaCpp:
    """Greedy answers of llama.cpp on the CPU, with the threads of torch."""

    def __init__(self, model: Model, *, sequences: int, sequence_tokens: int) -> None:
        """``sequences``: requests at once at most; ``sequence_tokens``: tokens of one, prompt and answer."""
        import llama_cpp

        from phi3_serve.bench.gguf_file import bytes_of_step  # the other competitors run without the library gguf

        self._api: Any = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # the library holds only its address
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        self._vocab_size: int = config(model.shape).vocab_size
        with tempfile.TemporaryDirectory() as directory:
            path = self._quantized(Path(directory), model)
            self._read_bytes = bytes_of_step(path)
            self._model = llama_cpp.llama_model_load_from_file(
                str(path).encode(), llama_cpp.llama_model_default_params()
            )
        if not self._model:
            raise EngineFailure(f"llama.cpp cannot load its model of the shape {model.shape}.")
        tokens = sequences * -(-sequence_tokens // _MARGIN) * _MARGIN
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = tokens
        parameters.n_seq_max = parameters.n_outputs_max = sequences  # else it reserves logits for all tokens of a batch
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise EngineFailure(f"llama.cpp cannot hold {tokens} tokens of the shape {model.shape}.")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(tokens, 0, 1)

    def _quantized(self, directory: Path, model: Model) -> Path:
        """A file of ``model`` in llama.cpp's type, by its own quantiser."""
        from phi3_serve.bench.gguf_file import write_random

        stored, quantized = directory / "f16.gguf", directory / "quantized.gguf"
        write_random(stored, config(model.shape))
        kind = FILE_TYPES[model.quantization]
        if kind == FILE_TYPES["none"]:
            return stored
        parameters = self._api.llama_model_quantize_default_params()
        parameters.ftype = getattr(self._api, f"LLAMA_FTYPE_MOSTLY_{kind}")
        parameters.nthread = torch.get_num_threads()
        if self._api.llama_model_quantize(str(stored).encode(), str(quantized).encode(), parameters):
            raise EngineFailure(f"llama.cpp cannot quantise the shape {model.shape} to {kind}.")
        return quantized

    def run(self, requests: list[EngineRequest], concurrency: int) -> Run:
        """Answer ``requests``."""
        loop = _Loop(iter(requests), list(range(concurrency)))
        began = time.perf_counter()
        loop.admit()
        while loop.running:
            self._step(loop)
            loop.admit()
        loop.run.seconds = time.perf_counter() - began
        loop.run.read_bytes = self._read_bytes
        loop.run.resident_bytes = psutil.Process().memory_info().rss
        return loop.run

    def _step(self, loop: _Loop) -> None:
        began = time.perf_counter()
        num_tokens = self._decode(loop.running)
        row = -1
        for sequence in loop.running:
            row += len(sequence.pending)
            sequence.length += len(sequence.pending)
            sequence.pending = [self._likeliest(row)]
            sequence.made += 1
        now = time.perf_counter()
        num_keys = sum(sequence.length for sequence in loop.running)
        loop.run.steps.append(StepStats(num_tokens, num_keys, len(loop.running), now - began))
        loop.run.num_tokens += len(loop.running)
        loop.run.first_token_s += [now - sequence.began for sequence in loop.running if sequence.made == 1]
        for sequence in [sequence for sequence in loop.running if sequence.made == sequence.wanted]:
            self._api.llama_memory_seq_rm(self._memory, sequence.number, -1, -1)
            loop.running.remove(sequence)
            loop.free.append(sequence.number)

    def _decode(self, running: Sequence[_Sequence]) -> int:
        """Compute the pending tokens of ``running``, and the logits of the last one of each; returns their number."""
        batch, at = self._batch, 0
        for sequence in running:
            for offset, token in enumerate(sequence.pending):
                batch.token[at], batch.pos[at] = token, sequence.length + offset
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence.number
                batch.logits[at] = offset == len(sequence.pending) - 1
                at += 1
        batch.n_tokens = at
        if problem := self._api.llama_decode(self._context, batch):
            raise EngineFailure(f"llama.cpp failed in a step of {at} tokens: llama_decode returned {problem}.")
        return at

    def _likeliest(self, row: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def close(self) -> None:
        """Free its memory."""
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)
