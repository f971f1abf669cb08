"""What disturbs an engine on a GPU: aborts, a memory that is too small for a while, the crossing at 4,096 tokens.

Answers in float32 are compared with those of the CPU, token for token; those in bfloat16 by their log-probabilities.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.core.engine_event import Finished, ScoredPrompt
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.select import RunnerFactory, new_runner
from phi3_serve.errors import ModelUnavailable
from tests.engine.asking import Answer, request
from tests.gpu.report import say, write
from tests.random_checkpoint import Shape, make

CROSSING = 4096  # tokens; from the next one on RoPE takes its long factors
SHAPE = Shape(
    num_layers=2,
    hidden_size=512,
    intermediate_size=4096,
    num_heads=8,
    num_kv_heads=4,
    context_length=CROSSING,
    long_context_length=4 * CROSSING,
)
BUDGET = 2048
LEFT_BYTES = 64 << 20  # for a step while the memory is too small: enough for 256 tokens, not for 2,048
FITTING_TOKENS = 256  # of a step, where a device has no such limit
MAX_DIFFERING = 1  # equal scores may decide otherwise
SCORES_BOUND = 0.3  # of a log-probability of phi-3-tiny in bfloat16; on a CPU it is 0.14
TEXT = "<|user|>\nWhat is 3 plus 4?<|end|>\n<|assistant|>\n3 plus 4 is 7.<|end|>\n"


def main(device: str = "cuda", make_runner: RunnerFactory = new_runner, shape: Shape = SHAPE) -> dict[str, Any]:
    """How many answers differ in each kind of trouble."""
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), shape, seed=3)
        of_cpu, of_device = (load("trouble", directory, None, device=on, dtype="float32") for on in ("cpu", device))
    sizes = EngineSizes(num_blocks=20 * shape.context_length // 16, token_budget=BUDGET, max_rows=32)
    asked = _requests(of_cpu, shape.context_length)
    with _engine(of_cpu, sizes, new_runner) as engine:
        expected = [answer.ids() for answer in _answers(engine, asked)]
    found: dict[str, Any] = {}
    with _engine(of_device, sizes, make_runner) as engine:
        for name in ("crossing", "aborts"):
            answers = _beside_aborts(engine, of_cpu, asked) if name == "aborts" else _answers(engine, asked)
            found[name] = sum(answer.ids() != ids for answer, ids in zip(answers, expected, strict=True))
            say(f"{name}: {found[name]} of {len(asked)} answers differ from those of the CPU")
            assert found[name] <= MAX_DIFFERING
            write(found)
        engine.blocks.check_integrity([])
    with _engine(of_device, sizes, make_runner) as engine:
        found["memory"] = _without_memory(engine, asked, expected, device)
    found["log-probabilities in bfloat16"] = error = _error_in_bfloat16(device, make_runner)
    say(f"log-probabilities of phi-3-tiny in bfloat16 differ by {error:.3f} at most from those of the CPU in float32")
    assert error < SCORES_BOUND
    return found


def _requests(loaded: LoadedModel, crossing: int) -> list[EngineRequest]:
    """Greedy ones: prompts that begin before the crossing and end behind it, one with beams, and short ones."""
    lengths = [crossing - 6, crossing - 1, crossing, crossing + 1]
    kinds: list[tuple[int, dict[str, Any]]] = [(length, {}) for length in lengths]
    kinds += [(crossing - 3, {"num_beams": 3}), *((20 + 7 * number, {"num_beams": 1}) for number in range(8))]
    return [
        request(
            loaded,
            f"{number}",
            prompt=tuple(3 + (i * i + (7 + number) * i) % 690 for i in range(length)),
            do_sample=False,
            max_new_tokens=12 if length >= crossing - 6 else 40,
            **given,
        )
        for number, (length, given) in enumerate(kinds)
    ]


@contextmanager
def _engine(loaded: LoadedModel, sizes: EngineSizes, make_runner: RunnerFactory) -> Iterator[Engine]:
    engine = Engine(loaded, sizes=sizes, make_runner=make_runner)
    try:
        yield engine
    finally:
        engine.close()


def _answers(engine: Engine, asked: Sequence[EngineRequest]) -> list[Answer]:
    return [Answer(engine, one) for one in asked]


def _beside_aborts(engine: Engine, loaded: LoadedModel, asked: Sequence[EngineRequest]) -> list[Answer]:
    """``asked``, with a request beside each that is aborted when its first token is there."""
    answers = []
    for number, one in enumerate(asked):
        beside = request(
            loaded, f"aborted {number}", prompt=(5, 9, number + 3), stream=True, max_new_tokens=500, do_sample=False
        )
        aborted = Answer(engine, beside)
        answers.append(Answer(engine, one))
        aborted.events.get(timeout=120)
        engine.abort(beside.request_id)
    return answers


def _without_memory(
    engine: Engine, asked: Sequence[EngineRequest], expected: Sequence[object], device: str
) -> dict[str, int]:
    """Answers while large steps find no memory; at most the largest request fails."""
    budget = engine._core.scheduler.budget
    with _limited_memory(engine, device):
        events = [answer.last() for answer in _answers(engine, asked)]
    failed = [event for event in events if isinstance(event, Failed)]
    assert all(isinstance(event.error, ModelUnavailable) for event in failed), failed
    differing = sum(
        [sequence.token_ids for sequence in event.sequences] != ids
        for event, ids in zip(events, expected, strict=True)
        if isinstance(event, Finished)
    )
    found = {"tokens of a step in the end": budget.limit, "failed": len(failed), "differing": differing}
    say(f"memory: {found}" if budget.limit < budget.most else "memory: every step had enough, so nothing was checked")
    assert len(failed) <= 1
    assert differing <= MAX_DIFFERING
    return found


@contextmanager
def _limited_memory(engine: Engine, device: str) -> Iterator[None]:
    """While the context lasts, torch has ``LEFT_BYTES`` for steps. A CPU has no limit, so there large steps fail."""
    if device == "cuda":
        torch.cuda.empty_cache()
        limit = torch.cuda.memory_reserved() + LEFT_BYTES
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    runner: Any = engine._core.runner
    run = runner.run

    def run_or_fail(chunks: Any) -> Any:
        if sum(chunk.num_tokens for chunk in chunks) > FITTING_TOKENS:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run(chunks)

    runner.run = run_or_fail
    yield
    runner.run = run


def _error_in_bfloat16(device: str, make_runner: RunnerFactory) -> float:
    """The largest difference of a log-probability of the tokens of a text, by phi-3-tiny."""
    of_devices = []
    for on, dtype, make_one in (("cpu", "float32", new_runner), (device, "bfloat16", make_runner)):
        loaded = load("tiny", str(EMBEDDED_TINY), None, device=on, dtype=dtype)
        ids = tuple(loaded.tokenizer(TEXT).input_ids)
        with _engine(loaded, EngineSizes(num_blocks=40, token_budget=256, max_rows=4), make_one) as engine:
            events = Answer(engine, request(loaded, prompt=ids, prompt_logprobs=0, max_new_tokens=1)).all()
        (scored,) = [event for event in events if isinstance(event, ScoredPrompt)]
        of_devices.append(torch.tensor([token.chosen for token in scored.logprobs]))
    expected, found = of_devices
    return float((found - expected).abs().max())
