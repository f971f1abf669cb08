"""Penalties and biases on a device that chooses tokens before the host has read the last ones.

The answers are those of the host's runner.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.core.adapter import AppliedAdapter
from phi3_serve.core.engine_event import EngineEvent, Finished
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.engine.kernels.reference import ReferenceKernels
from phi3_serve.engine.kvcache.cached_sequence import CachedSequence
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.model.decoder import Decoder
from phi3_serve.engine.model.device_runner import DeviceRunner
from phi3_serve.engine.model.select import Sizes, new_runner
from phi3_serve.engine.sampling.token_counts import TokenCounts
from phi3_serve.engine.sampling.triton_chooser import TritonChooser
from tests.engine import parity
from tests.engine.asking import request
from tests.engine.kernels.interpreter import mended_interpreter
from tests.engine.model.replayer import Replayer, runner_on_cpu
from tests.engine.parity import KINDS, VOCAB, Parity

PENALTIES: dict[str, tuple[float, ...]] = {
    "repetition_penalty": (0.7, 1.1, 1.5, 3.0),
    "encoder_repetition_penalty": (0.7, 1.3, 3.0),
    "presence_penalty": (-1.0, 0.6, 2.0),
    "frequency_penalty": (-0.2, 0.3, 1.7),
}
# How the tokens of a request are chosen. A draw from one token is no matter of chance.
MODES: tuple[dict[str, Any], ...] = (
    {"do_sample": False},
    {"do_sample": False},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_k": 1, "num_return_sequences": 3},
)
# What the host chooses, in the same steps.
OTHERS: tuple[dict[str, Any], ...] = (
    {"do_sample": False, "prompt_lookup_num_tokens": 3},
    {"do_sample": True, "seed": 3},
    {"do_sample": False, "num_beams": 2},
    {"do_sample": False, "repeat_last_n": 3},
)


def triton_on_cpu(model: Any, sizes: Sizes, *, releases_weights: bool = False) -> DeviceRunner:
    """As ``runner_on_cpu``, with the kernel that chooses tokens in Triton's interpreter."""
    assert isinstance(sizes, EngineSizes)
    kernels = ReferenceKernels()
    decoder = Decoder(model, kernels, releases_weights=releases_weights)
    return DeviceRunner(decoder, kernels, TritonChooser(torch.device("cpu")), Replayer(), sizes)


def asked(of: Parity, seed: int, count: int) -> list[EngineRequest]:
    """Requests with penalties, and some others beside them."""
    draw = random.Random(seed)
    requests = []
    for number in range(count):
        names = draw.sample(list(PENALTIES), draw.choice((0, 1, 1, 2, 4)))
        given: dict[str, Any] = {name: draw.choice(PENALTIES[name]) for name in names}
        given |= draw.choice(MODES) if draw.random() < 0.85 else draw.choice(OTHERS)
        given |= {"max_new_tokens": draw.choice((1, 8, 30)), "min_new_tokens": draw.choice((0, 0, 5))}
        if draw.random() < 0.4:
            of_tokens = [draw.randrange(VOCAB) for _ in range(40)]
            given["sequence_bias"] = [((token,), draw.choice((4.0, -5.0))) for token in of_tokens[:10]]
            name = draw.choice(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids"))
            given[name] = [[token] for token in of_tokens[5:]] if name == "bad_words_ids" else of_tokens[5:]
        given["eos_token_id"] = [draw.randrange(VOCAB) for _ in range(draw.choice((1, 40)))]
        prompt = tuple(draw.randrange(5, 600) for _ in range(draw.choice((1, 5, 17, 40))))
        one = request(of.loaded, f"{seed}-{number}", prompt=prompt, **given)
        which, strength = draw.randrange(100), draw.choice((0.4, -0.3))
        if of.adapters and draw.random() < 0.7:
            adapter = of.adapters[which % len(of.adapters)]
            one = replace(one, adapters=(AppliedAdapter(adapter, strength),))
        requests.append(one)
    return requests


def sequences(answer: tuple[list[int], EngineEvent]) -> tuple[GeneratedSequence, ...]:
    assert isinstance(answer[1], Finished), answer[1]
    return answer[1].sequences


@pytest.fixture(params=["torch", "adapters", pytest.param("triton", marks=pytest.mark.slow)])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Parity, Parity]]:
    """The host's runner and the device's."""
    runner = triton_on_cpu if request.param == "triton" else runner_on_cpu
    parities = [
        Parity(tmp_path / name, KINDS["plain"].shape, make_runner=made, with_adapters=request.param == "adapters")
        for name, made in (("host", new_runner), ("device", runner))
    ]
    with mended_interpreter():
        yield parities[0], parities[1]
    for one in parities:
        one.close()


def test_penalties_in_company(both: tuple[Parity, Parity], monkeypatch: pytest.MonkeyPatch) -> None:
    """With preemptions, ends that the host sees one step late, several answers to a prompt, drafts, beams, adapters."""
    seen: Counter[str] = Counter()
    slots, recount = TokenCounts.slots, TokenCounts._count

    def watched_slots(self: TokenCounts, of: list[CachedSequence]) -> list[int]:
        seen["chosen"] += len(of)
        seen["unread"] += sum(sequence.num_unread > 0 for sequence in of)
        return slots(self, of)

    def watched_count(self: TokenCounts, sequence: CachedSequence, slot: int) -> None:
        seen["counted"] += 1
        seen["counted amid an answer"] += len(sequence.tokens) > sequence.num_prompt_tokens
        recount(self, sequence, slot)

    monkeypatch.setattr(parity, "PREEMPTED", 0.4)
    monkeypatch.setattr(TokenCounts, "slots", watched_slots)
    monkeypatch.setattr(TokenCounts, "_count", watched_count)
    device = both[1]
    for seed in (1, 2, 3):
        expected, found = (one.answers(asked(one, seed, 24)) for one in both)
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            assert sequences(one) == sequences(other), (seed, number)
    assert device.engine._core.statistics.num_preemptions > 3
    assert seen["counted amid an answer"] > 1, seen
    assert seen["unread"] > 30, seen
    assert seen["chosen"] > 3 * seen["counted"], seen
