"""What the engine samples from is what transformers samples from."""

import itertools
import random
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.sampling.drawing import _candidates, _is_reducible, draw, probabilities
from phi3_serve.engine.sampling.processors import ScoreRow, ScoreSettings, process
from phi3_serve.engine.sampling.triton_chooser import TritonChooser
from phi3_serve.engine.sampling.warpers import requested, warp
from phi3_serve.errors import InvalidRequest
from tests.engine.asking import PROMPT, Answer, request

VOCAB = 704
VALUES: dict[str, tuple[Any, ...]] = {
    "temperature": (0.1, 0.7, 1.0, 2.5),
    "top_k": (1, 2, 10, 100, 703, 5000),
    "top_p": (0.0, 0.05, 0.5, 0.9, 0.999),
    "min_p": (0.0, 0.01, 0.2, 1.0),
    "typical_p": (0.05, 0.5, 0.9, 0.999),
    "epsilon_cutoff": (1e-4, 0.01, 0.3),
    "eta_cutoff": (1e-4, 0.01, 0.3),
    "top_h": (0.1, 0.5, 0.9),
    "renormalize_logits": (True,),
    "repetition_penalty": (0.6, 1.4),
    "suppress_tokens": ([5, 389, 600],),
    "num_beams": (3,),
    "eos_token_id": ([643, 5, 6],),
}
ONE_BY_ONE = [{name: value} for name, values in VALUES.items() for value in values]


def combinations(count: int) -> Iterator[dict[str, Any]]:
    pick = random.Random(0)
    for _ in range(count):
        names = pick.sample(list(VALUES), pick.randint(2, 6))
        yield {name: pick.choice(VALUES[name]) for name in names}


def logits_of_kinds() -> dict[str, Tensor]:
    """Scores of a flat, of a peaked and of a very peaked distribution, with ties, and with tokens ruled out."""
    flat = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    ties = (flat * 2).round() / 2
    ruled_out = (flat * 4).masked_fill(torch.arange(VOCAB) % 3 == 0, -torch.inf)
    return {"flat": flat, "peaked": flat * 4, "very peaked": flat * 30, "ties": ties, "ruled out": ruled_out}


def of_transformers(loaded: LoadedModel, scores: Tensor, given: dict[str, Any]) -> Tensor:
    """The distribution within ``generate``."""
    model: Any = loaded.model
    ids = torch.tensor([PROMPT])
    defaults = {"top_k": 0, "top_p": 1.0, "temperature": 1.0}
    config, _ = model._prepare_generation_config(None, **{**defaults, "max_new_tokens": 5, "do_sample": True, **given})
    model._prepare_special_tokens(config, True, device="cpu")
    processors = model._get_logits_processor(
        config, input_ids_seq_length=len(PROMPT), encoder_input_ids=ids, device="cpu", logits_processor=[]
    )
    warped: Tensor = processors(ids, as_beam(scores, given)[None].clone())
    return warped.softmax(-1)[0]


def as_beam(scores: Tensor, given: dict[str, Any]) -> Tensor:
    return scores.log_softmax(-1) if "num_beams" in given else scores


def settings(loaded: LoadedModel, given: dict[str, Any]) -> ScoreSettings:
    defaults = {"top_k": 0, "top_p": 1.0, "temperature": 1.0}
    return ScoreSettings(request(loaded, **{**defaults, "max_new_tokens": 5, "do_sample": True, **given}))


def processed(scores: Tensor, of: ScoreSettings, given: dict[str, Any]) -> Tensor:
    ours = as_beam(scores, given)[None].clone()
    process(ours, [ScoreRow(of, array("q", PROMPT), 0)], ours)
    return ours


def reduced(scores: Tensor, of: ScoreSettings) -> Tensor | None:
    """The distribution over the whole vocabulary, where the draw is from top-k candidates alone."""
    if not _is_reducible(of, VOCAB):
        return None
    values, ids, (has_ties,) = _candidates(scores, [of])
    if has_ties:
        return None
    return torch.zeros(1, VOCAB).scatter(1, ids, warp(values, [of]).softmax(-1))[0]


def with_ties_in_order(distribution: Tensor, scores: Tensor) -> Tensor:
    """By score, and where scores are equal by probability: which of them are beyond top_p is nobody's promise."""
    return distribution[np.lexsort((distribution.numpy(), scores.numpy()))]


def test_of_equal_scores_beyond_the_nucleus_the_lowest_ids_go(loaded: LoadedModel) -> None:
    scores = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, -9.0, 0.0]])  # e / (3 e + 4) = 0.224, and 0.082 each
    of = settings(loaded, {"top_p": 0.80})  # the ones make 0.67, one more 0.75, two more 0.83
    assert (probabilities(scores, [of])[0] > 0).tolist() == [True, False, True, False, True, True, False, True]


@pytest.mark.thorough
def test_each_warper_and_combinations_of_them(loaded: LoadedModel) -> None:
    compared = Counter[str]()
    for given, (kind, scores) in itertools.product([*ONE_BY_ONE, *combinations(150)], logits_of_kinds().items()):
        expected = of_transformers(loaded, scores, given)
        of = settings(loaded, given)
        ours = processed(scores, of, given)
        found = {"whole": probabilities(ours.clone(), [of])[0], "candidates": reduced(ours.clone(), of)}
        for way, distribution in found.items():
            if distribution is not None:
                compared[way] += 1
                found_and_expected = [distribution, expected]
                if kind == "ties" and "top_p" in given:
                    found_and_expected = [with_ties_in_order(d, ours[0]) for d in found_and_expected]
                assert (found_and_expected[0] - found_and_expected[1]).abs().max() < 1e-5, (given, kind, way)
    assert compared["whole"] > 900
    assert compared["candidates"] > 100


def test_rows_with_different_warpers_do_not_mix(loaded: LoadedModel) -> None:
    everyone = [settings(loaded, given) for given in combinations(40) if "num_beams" not in given]
    scores = torch.randn(len(everyone), VOCAB) * 3
    together = probabilities(scores.clone(), everyone)
    for number, of in enumerate(everyone):
        alone = probabilities(scores[number : number + 1].clone(), [of])[0]
        assert (together[number] - alone).abs().max() < 1e-6


def test_the_kernel_that_draws_gets_no_request_with_a_warper_that_it_lacks(loaded: LoadedModel) -> None:
    chooser = TritonChooser(torch.device("cpu"))
    warpers = {name for name in VALUES if requested(settings(loaded, {name: VALUES[name][-1]}).parameters)}
    assert warpers == {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"}
    for name in warpers:
        asked = {name: VALUES[name][-1]}
        assert chooser.supports(settings(loaded, asked)) == (name != "top_h")
        assert chooser.supports(settings(loaded, {**asked, "do_sample": False}))


def test_scores_that_are_no_numbers_are_refused(loaded: LoadedModel) -> None:
    scores = torch.zeros(1, VOCAB)
    scores[0, 3] = torch.inf
    for given in ({}, {"top_k": 5}):
        with pytest.raises(InvalidRequest, match="infinite or not a number"):
            draw(scores.clone(), [settings(loaded, given)])


def p_value(counts: Counter[int], expected: Tensor) -> float:
    """Pearson's chi-square test, tokens expected fewer than five times taken together."""
    total = counts.total()
    often = (expected * total >= 5).nonzero().flatten().tolist()
    observed = [counts[token] for token in often]
    wanted = [float(expected[token]) * total for token in often]
    if (rest := total - sum(wanted)) >= 5:
        observed.append(total - sum(observed))
        wanted.append(rest)
    elif total - sum(observed) > 25:  # many where hardly any are expected
        return 0.0
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    degrees = torch.tensor((len(wanted) - 1) / 2)
    return float(torch.special.gammaincc(degrees, torch.tensor(statistic / 2)))


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 10, "temperature": 1.5},
        {"top_k": 0, "top_p": 0.8},
        {"top_k": 30, "typical_p": 0.7, "repetition_penalty": 1.3},
        {"top_k": 20, "seeded": True},
    ],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(loaded: LoadedModel, given: dict[str, Any]) -> None:
    given = dict(given)
    is_seeded = given.pop("seeded", False)
    torch.manual_seed(0)  # the engine draws from torch's own generator where no seed is given
    engine = Engine(
        loaded, queue=QueueLimits(requests=5000), sizes=EngineSizes(num_blocks=400, token_budget=128, max_rows=128)
    )
    each = [{"seed": number} for number in range(2000)] if is_seeded else [{"num_return_sequences": 50}] * 80
    answers = [
        Answer(engine, request(loaded, f"r{number}", **{"do_sample": True, "max_new_tokens": 1, **one, **given}))
        for number, one in enumerate(each)
    ]
    counts = Counter(ids[0] for answer in answers for ids in answer.ids())
    engine.close()
    with torch.inference_mode():
        scores = loaded.model(torch.tensor([PROMPT])).logits[0, -1].float()
    assert p_value(counts, of_transformers(loaded, scores, given)) > 1e-3
    assert p_value(counts, of_transformers(loaded, scores, {**given, "temperature": 0.4})) < 1e-6
