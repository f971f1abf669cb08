"""The engine against transformers: random prompts, parameters and company, token for token.

``python -m tests.engine.parity NUM_CASES [SEED [QUANTIZATION [RUNNER [ADAPTERS]]]]`` runs as many cases as wanted (``make fuzz``: 20,000); 500 are in
``make test-all``. Every case is a request drawn over the whole table of parameters, alone and combined. A batch of them
runs at once in the engine, in blocks too few for all of them, and some are preempted and computed again; the oracle
answers them one after another. Sampling is compared, too: with a seed both draw the same tokens. The companies take
turns on three checkpoints: a plain one, one whose sliding window is shorter than most sequences, and one whose RoPE
factors change amid most sequences, with guidance in half of its requests. With a third argument, int8 or int4, the
engine rounds their weights, and the oracle has the weights as rounded (``make fuzz QUANTIZATION=int4``). With gguf-q8_0,
gguf-q4_0 or gguf-q4_k_m it reads a GGUF file of such types, and the oracle has what the library ``gguf`` makes of them.
With stored-bfloat16 or stored-float16 it reads checkpoints in 16 bits.
With ``device`` as the fourth, the runner of a GPU takes the steps, with the kernels of the reference
(``make fuzz RUNNER=device``). With ``adapters`` as the fifth, most requests have one adapter or several, with strengths,
and many have the prompt of another request; the oracle is PEFT (``make fuzz ADAPTERS=1``).
"""

import copy
import multiprocessing
import os
import queue
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from phi3_serve.catalogue import NO_QUANTIZATION
from phi3_serve.core.adapter import Adapter
from phi3_serve.core.constraint import Constraint
from phi3_serve.core.engine_event import EngineEvent, Finished, NewTokens
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.core.prompt import RawPrompt
from phi3_serve.engine.adapters.pages import PageLayout
from phi3_serve.engine.checkpoint import SINGLE_FILE
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.engine_core import StepStats
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.loader import load
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.select import RunnerFactory, new_runner
from phi3_serve.engine.quantization import QuantizedEmbedding, QuantizedLinear
from phi3_serve.engine.scheduler import Plan
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import STRUCTURED_PARAMETERS, check_token_ids, resolve
from phi3_serve.text.tokenizer import Phi3Tokenizer
from tests.engine.model.replayer import runner_on_cpu
from tests.oracle.adapters import AdapterDraw, AdapterOracle, save_adapters
from tests.oracle.reference import Oracle
from tests.random_checkpoint import Shape, make
from training.modules import SHAKEN_BY, load_with_modules, rounded_cache

HAS_LLGUIDANCE = find_spec("llguidance") is not None  # the reference machine with a GPU does without
COMPANY = 24  # requests in flight at once
VOCAB = 704
PAD = 643  # its embedding is zero: after a prompt of it alone all tokens score the same
MEANT = [token for token in range(3, VOCAB) if token != PAD]
CUTOFFS = {"top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "forced_bos_token_id"}
CHOSEN_FOR_ALL = {"allowed_token_ids", "forced_bos_token_id", "forced_eos_token_id"}
FEW_TOKENS = CUTOFFS.union(STRUCTURED_PARAMETERS)
PREEMPTED = 0.1  # of the steps
SHAKES = 16
GGUF = "gguf-"  # begins the name of a quantization that is the type of a file
STORED = "stored-"  # and a dtype: that of the weights in the checkpoint
GGUF_WEIGHTS = 0.2  # the size of random ones, as in the other checkpoints
NUM_BLOCKS = 32  # 512 tokens: enough for any one request, too few for those that come with it
ADAPTER_PAGES = 5  # enough for any one request, too few for all adapters
RUNNERS: dict[str, RunnerFactory] = {"host": new_runner, "device": runner_on_cpu}


@dataclass(frozen=True)
class Kind:
    """A checkpoint, and how many of its requests are guided besides those that draw it."""

    shape: Shape
    guided: float = 0.0


KINDS = {
    "plain": Kind(Shape(num_layers=3)),
    "window": Kind(Shape(num_layers=3, sliding_window=23)),
    "crossing": Kind(Shape(num_layers=3, context_length=48, long_context_length=2048), guided=0.5),
}


@dataclass
class Case:
    """A request, and what was given of it."""

    prompt: tuple[int, ...]
    given: dict[str, Any]
    request: EngineRequest = field(init=False)


def draws(draw: random.Random) -> dict[str, Callable[[], Any]]:
    """For every parameter that engines see a draw of a value that has an effect."""

    def one_of(*values: Any) -> Callable[[], Any]:
        return lambda: draw.choice(values)

    def ids(most: int = 4) -> list[int]:
        return [draw.randrange(VOCAB) for _ in range(draw.randint(1, most))]

    return {
        "min_new_tokens": one_of(1, 5, 12),
        "temperature": one_of(0.3, 0.7, 1.5, 3.0),
        "top_k": one_of(0, 1, 3, 10, 60, 1000),
        "top_p": one_of(0.0, 0.1, 0.5, 0.9, 0.99),
        "min_p": one_of(0.0, 0.05, 0.3, 1.0),
        "typical_p": one_of(0.1, 0.5, 0.95),
        "epsilon_cutoff": one_of(0.001, 0.02, 0.5),
        "eta_cutoff": one_of(0.001, 0.02, 0.5),
        "top_h": one_of(0.1, 0.5, 0.9),  # at 1.0 two sums that are equal decide, one of them rounded the other way
        "repetition_penalty": one_of(0.7, 1.1, 1.5, 3.0),
        "encoder_repetition_penalty": one_of(0.7, 1.2, 2.0),
        "length_penalty": one_of(-2.0, -0.5, 0.0, 0.5, 2.0),
        "no_repeat_ngram_size": one_of(1, 2, 3, 5, 50),
        "encoder_no_repeat_ngram_size": one_of(1, 2, 3, 50),
        "bad_words_ids": lambda: [ids(2) for _ in range(draw.randint(1, 20))],
        "sequence_bias": lambda: [(ids(2), draw.choice([3.0, 10.0, -5.0])) for _ in range(draw.randint(1, 20))],
        "suppress_tokens": lambda: ids(200),
        "begin_suppress_tokens": lambda: ids(200),
        "forced_bos_token_id": lambda: draw.randrange(VOCAB),
        "forced_eos_token_id": one_of(643, [643, 5], 700),
        "exponential_decay_length_penalty": lambda: (draw.choice([0, 2, 6]), draw.choice([1.05, 1.3, 0.8])),
        "renormalize_logits": one_of(True),
        "remove_invalid_values": one_of(True),
        "guidance_scale": one_of(0.5, 1.5, 4.0),
        "negative_prompt_ids": lambda: ids(6),
        "prompt_lookup_num_tokens": one_of(1, 3, 8),
        "output_scores": one_of(True),
        "eos_token_id": lambda: draw.choice([draw.randrange(VOCAB), [draw.randrange(VOCAB) for _ in range(40)], []]),
        "pad_token_id": one_of(0, 5),
        "bos_token_id": one_of(1),
        "stop_strings": lambda: draw.choice(["e", [" a", "the", "in"], ["tion"], "er ", "é"]),
        "early_stopping": one_of(True, False, "never"),
        "stop_token_ids": lambda: ids(4),
        "allowed_token_ids": lambda: [draw.randrange(VOCAB) for _ in range(draw.choice([100, 500]))],
        "max_time": one_of(60.0),
        "return_dict_in_generate": one_of(True),
        **(structured_draws(draw) if HAS_LLGUIDANCE else {}),
    }


def structured_draws(draw: random.Random) -> dict[str, Callable[[], Any]]:
    """Structured outputs; those that were drawn last win, because they exclude each other."""
    pair = {"a": {"type": "integer"}, "b": {"enum": ["x", "yes"]}}
    schemas: list[Any] = [
        {"type": "object", "properties": pair, "required": ["a"], "additionalProperties": False},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 4},
        {"type": "string", "maxLength": 12},
        {"anyOf": [{"type": "null"}, {"type": "number", "minimum": -5, "maximum": 5.5}]},
        True,
    ]
    return {
        "json_schema": lambda: draw.choice(schemas),
        "regex": lambda: draw.choice([r"[a-c]{2,5}( the)?", " ?yes|no", r"\d+(\.\d+)?", r"( [a-z]+){1,20}", "é+"]),
        "choice": lambda: draw.choice([["yes", "no", "ye olde"], [" a"], ["the", "the castle", "them"]]),
        "grammar": lambda: draw.choice(['start: "(" start ")" | "x"', 'root ::= ("a" | "b")+ " end"']),
    }


def modes(draw: random.Random) -> dict[str, Any]:
    """How tokens are chosen: greedy, drawn, several drawn, beams, drawn beams, groups of beams."""
    beams = draw.choice([2, 3, 4, 6])
    groups = draw.choice([2, 3, 4])
    return draw.choice(
        [
            {"do_sample": False},
            {"do_sample": False},
            {"do_sample": True, "seed": draw.randrange(2**40)},
            {"do_sample": True, "seed": draw.randrange(2**40), "num_return_sequences": draw.choice([2, 3])},
            {"do_sample": False, "num_beams": beams, "num_return_sequences": draw.randint(1, beams)},
            {"do_sample": True, "num_beams": beams, "seed": draw.randrange(2**40)},
            {
                "do_sample": False,
                "num_beams": 2 * groups,
                "num_beam_groups": draw.choice([2, groups]),
                "diversity_penalty": draw.choice([0.3, 1.0, 5.0]),
                "num_return_sequences": draw.randint(1, groups),
            },
        ]
    )


def cases(loaded: LoadedModel, seed: int, *, guided: float = 0.0, adapters: Sequence[Adapter] = ()) -> Iterator[Case]:
    """Requests without end; the share ``guided`` of them has a negative prompt of up to 60 tokens.

    With ``adapters``, most requests have some of these.
    """
    draw = random.Random(seed)
    of_adapters = AdapterDraw(adapters, seed)
    table = draws(draw)

    def long_ids(most: int) -> list[int]:
        return [draw.choice(MEANT) for _ in range(draw.randint(1, most))]

    tokenizer = Phi3Tokenizer(loaded.tokenizer)
    controls = sorted(tokenizer.control_ids - {PAD})
    number = 0
    while True:
        prompt = tuple(draw.choice(MEANT) for _ in range(draw.choice([1, 2, 5, 16, 17, 40, 90])))
        if draw.random() < 0.3:  # n-grams that repeat
            prompt = (prompt * 6)[: max(len(prompt), 12)]
        if adapters:
            prompt = of_adapters.prompt(prompt)
        given: dict[str, Any] = {"max_new_tokens": draw.choice([1, 2, 4, 4, 8, 8, 16, 16, 24, 40, 80])}
        given |= {name: table[name]() for name in draw.sample(list(table), draw.choice([0, 1, 1, 2, 3, 5, 8]))}
        if draw.random() < guided:
            given |= {"guidance_scale": table["guidance_scale"](), "negative_prompt_ids": long_ids(60)}
        given.setdefault("min_new_tokens", 0)
        given |= modes(draw)
        if "num_beams" in given and isinstance(given.get("forced_eos_token_id"), list):
            given["forced_eos_token_id"] = 643  # of equal candidates torch.topk takes any
        num_rows = given.get("num_beams", given.get("num_return_sequences", 1)) * (1 + ("guidance_scale" in given))
        most = 16 if num_rows > 4 else 40 if num_rows > 2 else 80  # any one request fits into the few blocks there are
        for name in ("max_new_tokens", "min_new_tokens"):
            given[name] = min(given[name], most)
        if "num_beams" in given:
            given["max_new_tokens"] = max(2, given["max_new_tokens"])  # a forced first and last token makes all equal
        if "num_beams" in given and "exponential_decay_length_penalty" in given:
            given.pop("remove_invalid_values", None)  # ends that are ruled out come back with one huge score for all
        if "num_beams" in given and "guidance_scale" in given:
            # Where cutoffs, a grammar or a forced token leave fewer tokens than beams take, the rest has probability 0, and ties
            # decide which of them are taken; by way of the negative prompt's rows, which stay where they are, these change
            # the living beams. Without sampling, only a grammar leaves so few.
            few, no_cutoff = (FEW_TOKENS, {"top_k": 0}) if given["do_sample"] else (STRUCTURED_PARAMETERS, {})
            given = {name: value for name, value in given.items() if name not in few} | no_cutoff
        kinds = [name for name in STRUCTURED_PARAMETERS if name in given]
        for name in kinds[:-1]:
            del given[name]
        if kinds and draw.random() < 0.8:  # few such tokens fit a grammar, and both refuse what leaves none
            given = {name: value for name, value in given.items() if name not in CHOSEN_FOR_ALL}
        if kinds and "num_beams" in given:
            given.pop("renormalize_logits", None)  # generate() makes nan of a beam to which nothing is left
        if kinds and draw.random() < 0.5:  # the answer begins a text
            prompt = (*prompt[:-3], draw.choice(controls))[-1 if draw.random() < 0.9 else 0 :]
        case = Case(prompt, given)
        try:
            parameters = resolve(GenerationParameters(**given), loaded.defaults)
            check_token_ids(parameters, loaded.vocab_size)
        except InvalidRequest:
            continue
        number += 1
        case.request = prepare(
            f"{seed}-{number}",
            prompt,
            parameters,
            context_length=loaded.context_length,
            timeout_s=600,
            stream=draw.random() < 0.5,
        )
        if adapters:
            case.request = replace(case.request, adapters=of_adapters.adapters())
        if kinds:
            case.request = replace(case.request, constraint=constraint(loaded, tokenizer, case.request))
        yield case


def constraint(loaded: LoadedModel, tokenizer: Phi3Tokenizer, request: EngineRequest) -> Constraint:
    """The constraint of ``request``, as the replica makes it."""
    from phi3_serve.text.constraint import Grammars

    wanted = request.parameters.structured_output
    assert wanted is not None
    return Grammars(tokenizer, loaded.vocab_size).constraint(
        wanted,
        ends=request.parameters.eos_token_ids,
        is_start_of_text=not tokenizer.before_answer(RawPrompt(""), request.prompt_ids),
    )


def last_event(events: "queue.Queue[EngineEvent]") -> tuple[list[int], EngineEvent]:
    """The streamed tokens and the last event."""
    streamed: list[int] = []
    while True:
        event = events.get(timeout=300)
        if not isinstance(event, NewTokens):
            return streamed, event
        streamed += event.token_ids


def is_same(ours: GeneratedSequence, theirs: GeneratedSequence) -> bool:
    """Whether the tokens are equal, but for the padding that generate() puts behind a stop string."""
    beyond = theirs.token_ids[len(ours.token_ids) :]
    ends_by_string = ours.finish_reason == "stop" and len(set(beyond)) <= 1
    return theirs.token_ids[: len(ours.token_ids)] == ours.token_ids and (not beyond or ends_by_string)


def are_repeats(number: int, ours: tuple[GeneratedSequence, ...], theirs: tuple[GeneratedSequence, ...]) -> bool:
    """Whether answer ``number`` of both is an earlier one again.

    If fewer answers are possible than beam search returns, dead beams repeat some; ties decide which.
    """
    return all(any(is_same(one, some[number]) for one in some[:number]) for some in (ours, theirs))


def verdict(case: Case, ours: tuple[list[int], EngineEvent], theirs: EngineEvent) -> str:
    """How the two answers compare; "differs" is the one that must not be."""
    streamed, event = ours
    if isinstance(theirs, Failed):
        return "refused by both" if isinstance(event, Failed) else "refused by transformers"
    if not isinstance(event, Finished) or not isinstance(theirs, Finished):
        return "differs"
    if len(event.sequences) != len(theirs.sequences):
        return "differs"
    pairs = list(zip(event.sequences, theirs.sequences, strict=True))
    if "num_beams" in case.given:
        pairs = [p for n, p in enumerate(pairs) if not are_repeats(n, event.sequences, theirs.sequences)]
    if not all(is_same(mine, other) for mine, other in pairs):
        return "differs"
    if streamed and tuple(streamed) != event.sequences[0].token_ids:
        return "differs"
    for mine, other in pairs:
        if (mine.scores is None) != (other.scores is None):
            return "differs"
        if mine.scores is not None and other.scores is not None:
            tokens = zip(mine.scores, other.scores, strict=False)
            # a token on the edge of what may be drawn shifts the others' probabilities a little
            near = 2e-2 if case.given["do_sample"] else 1e-3
            if not all(a == b or abs(a - b) <= near * max(1.0, abs(b)) or b != b for a, b in tokens):
                return "differs"
    return "equal"


def set_dequantized(model: Any, quantized: Any) -> None:
    """Give ``model`` the weights of ``quantized`` as they are multiplied by, in float32."""
    for path, module in quantized.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            model.get_submodule(path).weight.data = module.dequantized()


def loaded_twice(directory: Path, shape: Shape, device: str, quantization: str) -> tuple[LoadedModel, LoadedModel]:
    """A new checkpoint, for the oracle and for the engine. The oracle has the weights that the engine should have."""
    if quantization.startswith(GGUF):
        return loaded_from_gguf(directory, shape, device, quantization.removeprefix(GGUF))
    make(directory, shape, seed=7)
    if quantization.startswith(STORED):
        store_as(directory, getattr(torch, quantization.removeprefix(STORED)))
        quantization = NO_QUANTIZATION
    theirs = load_with_modules(directory)
    ours = load("tested", str(directory), None, device=device, dtype="float32", quantization=quantization)
    if quantization != NO_QUANTIZATION:
        set_dequantized(theirs.model, ours.model)
    return theirs, ours


def store_as(directory: Path, dtype: torch.dtype) -> None:
    """Store the weights of the checkpoint in ``directory`` in ``dtype``."""
    tensors = load_file(directory / SINGLE_FILE)
    halves = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(halves, directory / SINGLE_FILE, metadata={"format": "pt"})


def loaded_from_gguf(directory: Path, shape: Shape, device: str, types: str) -> tuple[LoadedModel, LoadedModel]:
    """The same with a GGUF file, whose weights the library ``gguf`` reads for the oracle."""
    from tests.engine.gguf import files  # the reference machine with a GPU does without the library

    make(directory, replace(shape, hidden_size=files.BLOCK, intermediate_size=files.BLOCK), seed=7)
    meant = files.write(directory / "model.gguf", directory, files.MIXTURES[types], size=GGUF_WEIGHTS)
    theirs = load_with_modules(directory)
    theirs.model.load_state_dict(meant)
    return theirs, load("tested", str(directory / "model.gguf"), None, device=device, dtype="float32")


def shaken(loaded: LoadedModel, seed: int) -> LoadedModel:
    """``loaded`` with another head, each weight of it moved by two parts in a million."""
    model = copy.deepcopy(loaded.model)
    head = model.lm_head.weight.data
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
    head *= 1 + SHAKEN_BY * noise.to(head.device)
    return replace(loaded, model=model)


def _is_same_answer(one: EngineEvent, other: EngineEvent) -> bool:
    if not isinstance(one, Finished) or not isinstance(other, Finished):
        return type(one) is type(other)
    return [s.token_ids for s in one.sequences] == [s.token_ids for s in other.sequences]


class Parity:
    """An engine with few blocks, its oracle on the CPU, and the checkpoint of both."""

    def __init__(
        self,
        directory: Path,
        shape: Shape,
        make_runner: RunnerFactory = new_runner,
        device: str = "cpu",
        quantization: str = NO_QUANTIZATION,
        with_adapters: bool = False,
        kv_cache_dtype: KvCacheDtype = "auto",
    ) -> None:
        self._kv_cache_dtype = kv_cache_dtype
        self.loaded, ours = loaded_twice(directory, shape, device, quantization)
        if with_adapters:
            save_adapters(self.loaded, directory / "adapters")
        oracle = AdapterOracle if with_adapters else Oracle
        self.oracle = oracle(self.loaded)
        self._all_are_there = threading.Event()
        self._draw = random.Random(0)
        self._shaken = [oracle(shaken(self.loaded, seed)) for seed in range(SHAKES)]
        self.engine = Engine(
            ours,
            sizes=EngineSizes(
                num_blocks=NUM_BLOCKS,
                token_budget=96,
                max_rows=64,
                adapter_bytes=ADAPTER_PAGES * PageLayout(ours.model.config, torch.float32).num_bytes,
                kv_cache_dtype=kv_cache_dtype,
            ),
            on_step=self._between_steps,
            make_runner=make_runner,
        )
        saved = sorted((directory / "adapters").iterdir()) if with_adapters else []
        self.adapters = [self.engine.load_adapter(path.name, str(path)) for path in saved if path.is_dir()]

    def cases(self, seed: int, *, guided: float = 0.0) -> Iterator[Case]:
        """Requests without end; see ``cases``."""
        return cases(self.loaded, seed, guided=guided, adapters=self.adapters)

    def run(self, some: list[Case]) -> list[tuple[str, Case, EngineEvent, EngineEvent]]:
        """Verdicts on ``some`` cases that keep each other company."""
        with rounded_cache(self._kv_cache_dtype):
            return self._verdicts(some)

    def _verdicts(self, some: list[Case]) -> list[tuple[str, Case, EngineEvent, EngineEvent]]:
        ours = self.answers([case.request for case in some])
        # What lookup drafts must not change the answer, so the oracle does without; with a seed its draws would differ.
        plain = [
            replace(c.request, parameters=replace(c.request.parameters, prompt_lookup_num_tokens=None)) for c in some
        ]
        verdicts: list[tuple[str, Case, EngineEvent, EngineEvent]] = []
        for case, request, mine in zip(some, plain, ours, strict=True):
            theirs = self.oracle.answer(request)
            result = verdict(case, mine, theirs)
            if result == "differs" and self.is_close_call(request, theirs):
                result = "too close to call"
            verdicts.append((result, case, mine[1], theirs))
        return verdicts

    def answers(self, requests: list[EngineRequest]) -> list[tuple[list[int], EngineEvent]]:
        """The answers to ``requests``; the engine's first step ends when all have come, so that they share the rest."""
        queues: list[queue.Queue[EngineEvent]] = [queue.Queue() for _ in requests]
        self._all_are_there.clear()
        for request, events in zip(requests, queues, strict=True):
            self.engine.submit(request, events.put)
        self._all_are_there.set()
        return [last_event(events) for events in queues]

    def _between_steps(self, _: StepStats) -> None:
        """On the engine's thread: preempt some requests, because a lack of memory seldom does so amid an answer."""
        self._all_are_there.wait()
        scheduler = self.engine._core.scheduler
        if len(scheduler.running) > 1 and self._draw.random() < PREEMPTED:
            scheduler.preempt_youngest(Plan())

    def is_close_call(self, request: EngineRequest, theirs: EngineEvent) -> bool:
        """Whether transformers itself answers otherwise once its weights, and keys that it rounds, move by two parts in a million.

        Two candidates then differ by less than float32 resolves, and the order of its sums decides.
        """
        for seed, oracle in enumerate(self._shaken):
            with rounded_cache(self._kv_cache_dtype, shaken_by=seed):
                if not _is_same_answer(oracle.answer(request), theirs):
                    return True
        return False

    def close(self) -> None:
        """Stop; every block has to be back."""
        self.engine.close()
        self.engine.blocks.check_integrity([])


def expect_equal(parity: Parity, drawn: Iterator[Case], num_companies: int) -> None:
    """Run companies of ``drawn`` and assert that none of the answers differs, and that nearly all are compared."""
    counts: Counter[str] = Counter()
    for _ in range(num_companies):
        for result, case, ours, theirs in parity.run(list(islice(drawn, COMPANY))):
            assert result != "differs", f"{case.given}\n{case.prompt}\n{ours}\n{theirs}"
            counts[result] += 1
    assert counts["equal"] > 0.9 * counts.total()
    assert (
        counts["equal"] + counts["refused by both"] > 0.95 * counts.total()
    )  # a grammar and banned tokens, for example


def fuzz(
    num_cases: int,
    seed: int,
    quantization: str,
    runner: str,
    with_adapters: bool,
    report: "queue.Queue[Counter[str]]",
) -> None:
    """Run ``num_cases`` in this process, print what differs, report the verdicts of each company."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    done = 0
    with tempfile.TemporaryDirectory() as directory:
        parities = [
            Parity(
                Path(directory) / name,
                kind.shape,
                RUNNERS[runner],
                quantization=quantization,
                with_adapters=with_adapters,
            )
            for name, kind in KINDS.items()
        ]
        drawn = [p.cases(seed, guided=kind.guided) for p, kind in zip(parities, KINDS.values(), strict=True)]
        turns = cycle(zip(parities, drawn, strict=True))
        while done < num_cases:
            parity, some = next(turns)
            verdicts = parity.run([next(some) for _ in range(min(COMPANY, num_cases - done))])
            for result, case, ours, theirs in verdicts:
                if result == "differs":
                    applied = [(one.adapter.name, one.strength) for one in case.request.adapters]
                    print(f"\n{case.given}\n{case.prompt}\n{applied}\n  engine {ours}\n  oracle {theirs}", flush=True)
            done += len(verdicts)
            report.put(Counter(result for result, *_ in verdicts))
        for parity in parities:
            parity.close()
    report.put(Counter())


def main(num_cases: int, seed: int, quantization: str, runner: str, with_adapters: bool) -> int:
    """Share ``num_cases`` among the cores; 1 if any differs or is missing, or many are too close to call."""
    context = multiprocessing.get_context("spawn")
    num_processes = os.cpu_count() or 1
    report: queue.Queue[Counter[str]] = context.Queue()  # type: ignore[assignment]
    shares = [num_cases // num_processes + (n < num_cases % num_processes) for n in range(num_processes)]
    workers = [
        context.Process(target=fuzz, args=(share, seed + n, quantization, runner, with_adapters, report))
        for n, share in enumerate(shares)
    ]
    for worker in workers:
        worker.start()
    counts: Counter[str] = Counter()
    while any(worker.is_alive() for worker in workers) or not report.empty():
        try:
            counts += report.get(timeout=1)
        except queue.Empty:
            continue
        print(f"\r{counts.total():,} of {num_cases:,} cases: {dict(counts)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    all_ended_well = all(worker.exitcode == 0 for worker in workers)
    is_complete = all_ended_well and counts.total() == num_cases
    is_equal = not counts["differs"] and counts["too close to call"] <= 1 + num_cases / 1000
    return 0 if is_complete and is_equal else 1


if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    sys.exit(main(int(given[1]), int(given.get(2, 0)), given.get(3, NO_QUANTIZATION), given.get(4, "host"), 5 in given))
