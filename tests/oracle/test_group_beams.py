"""Group beam search, token for token that of transformers 4.55 (record_group_beams.py made the record)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from phi3_serve.core.engine_event import Finished
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.sampling.hypotheses import BestHypotheses, Hypothesis
from phi3_serve.parameters import GenerationParameters
from phi3_serve.resolved_parameters import resolve
from tests.engine.asking import Answer, request
from tests.oracle.record_group_beams import RECORD, weights_hash
from tests.oracle.reference import Oracle
from training.modules import load_with_modules

RECORDED = json.loads(RECORD.read_text())


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    assert weights_hash(checkpoint) == RECORDED["weights_sha256"], "another checkpoint: record again"
    return load_with_modules(checkpoint)


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=400, token_budget=64, max_rows=64))
    yield engine
    engine.close()
    engine.blocks.check_integrity([])


def answer(asked: Engine | Oracle, loaded: LoadedModel, prompt: list[int], given: dict[str, Any]) -> Finished:
    made = request(loaded, prompt=tuple(prompt), do_sample=False, **given)
    event = asked.answer(made) if isinstance(asked, Oracle) else Answer(asked, made).last()
    assert isinstance(event, Finished), event
    return event


@pytest.mark.parametrize("number", range(len(RECORDED["cases"])))
@pytest.mark.parametrize("who", ["engine", "oracle"])
def test_answers_are_those_of_transformers_4_55(engine: Engine, loaded: LoadedModel, who: str, number: int) -> None:
    case = RECORDED["cases"][number]
    finished = answer(engine if who == "engine" else Oracle(loaded), loaded, case["prompt"], case["parameters"])
    ends = set(resolve(GenerationParameters(**case["parameters"]), loaded.defaults).eos_token_ids)
    expected = [row[: next((i + 1 for i, t in enumerate(row) if t in ends), len(row))] for row in case["answers"]]
    assert [list(s.token_ids) for s in finished.sequences] == expected


def test_scores_are_those_of_the_beam_that_was_taken(engine: Engine, loaded: LoadedModel) -> None:
    """4.55 numbered beams within their group and so picked other groups' scores; these are the tokens' own."""
    given = {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.3, "num_return_sequences": 4}
    prompt = [389, 512, 380]
    finished = answer(engine, loaded, prompt, {**given, "max_new_tokens": 6, "output_scores": True})
    exact = 0
    for sequence in finished.sequences:
        logits = loaded.model(torch.tensor([prompt + list(sequence.token_ids)])).logits[0].log_softmax(-1)
        own = [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(sequence.token_ids)]
        assert sequence.scores is not None
        # two beams of the first group may each take 0.3 from a token of the second
        assert all(abs(a - b) < 0.65 for a, b in zip(sequence.scores, own, strict=True))
        exact += sequence.scores == pytest.approx(own, abs=1e-4)
    assert exact >= 2  # the first group knows no penalty


def test_the_best_hypotheses_by_hand() -> None:
    best = BestHypotheses(2, length_penalty=1.0, early_stopping=False, max_new_tokens=10)
    best.add((1,), (0,), -4.0, 2)  # -2.0
    assert not best.is_complete(-0.1, 3)
    best.add((2,), (0,), -3.0, 1)  # -3.0
    best.add((3,), (0,), -9.0, 2)  # -4.5: worse than both
    assert [h.score for h in best.found] == [-2.0, -3.0]
    best.add((4,), (0,), -1.0, 1)  # -1.0 replaces -3.0
    assert best.found == [Hypothesis(-2.0, (1,), (0,)), Hypothesis(-1.0, (4,), (0,))]
    # the living could reach -5/3 at the present length, which is above the worst
    assert not best.is_complete(-5.0, 3 - 1 + 1)
    assert best.is_complete(-9.0, 3)


@pytest.mark.parametrize(("early_stopping", "complete"), [(True, True), (False, True), ("never", False)])
def test_when_a_group_stops(early_stopping: Any, complete: bool) -> None:
    """Worst -2.0; the living have -9.0 over 3 tokens: -3.0 now, but -0.9 if they ran to 10 tokens."""
    best = BestHypotheses(1, length_penalty=1.0, early_stopping=early_stopping, max_new_tokens=10)
    best.add((1,), (0,), -4.0, 2)
    assert best.is_complete(-9.0, 3) is complete
