"""What vLLM and llama.cpp have beside transformers, against their definitions, one token after the other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.errors import InvalidRequest
from phi3_serve.prepare import warnings
from tests.engine.asking import PROMPT, Answer, request
from tests.support import ENDLESS

Change = Callable[[Tensor, list[int], list[int]], None]  # of scores, prompt and answer, answer


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    engine = Engine(loaded)
    yield engine
    engine.close()


@torch.inference_mode()
def reference(model: Any, num_tokens: int, change: Change) -> list[int]:
    ids = list(PROMPT)
    for _ in range(num_tokens):
        scores = model(torch.tensor([ids])).logits[0, -1].float()
        change(scores, ids, ids[len(PROMPT) :])
        ids.append(int(scores.argmax()))
    return ids[len(PROMPT) :]


def plain(loaded: LoadedModel, num_tokens: int = 24) -> list[int]:
    return reference(loaded.model, num_tokens, lambda scores, ids, answer: None)


@pytest.mark.parametrize("last", [1, 3, 10, 1000, -1])
@pytest.mark.parametrize("extra", [{}, {"prompt_lookup_num_tokens": 3}])
def test_repeat_last_n_is_a_window(engine: Engine, loaded: LoadedModel, last: int, extra: dict[str, Any]) -> None:
    def penalise(scores: Tensor, ids: list[int], answer: list[int]) -> None:
        for token in set(ids if last == -1 else ids[-last:]):
            scores[token] = scores[token] * 1.5 if scores[token] <= 0 else scores[token] / 1.5
        scores[703] = -torch.inf

    given = {"repetition_penalty": 1.5, "repeat_last_n": last, "max_new_tokens": 32, **ENDLESS, **extra}
    (ids,) = Answer(engine, request(loaded, **given)).ids()
    assert list(ids) == reference(loaded.model, 32, penalise)


def test_a_window_of_0_turns_the_penalty_off(engine: Engine, loaded: LoadedModel) -> None:
    given: dict[str, Any] = {"repetition_penalty": 1.5, "repeat_last_n": 0, "max_new_tokens": 24, "eos_token_id": []}
    (ids,) = Answer(engine, request(loaded, **given)).ids()
    assert list(ids) == plain(loaded)


@pytest.mark.parametrize("beams", [{}, {"num_beams": 3}])
def test_stop_token_ids_end_the_answer_besides_eos(engine: Engine, loaded: LoadedModel, beams: dict[str, Any]) -> None:
    ids = plain(loaded)
    one, other = ids[7], ids[12]
    expected = ids[: 1 + min(ids.index(one), ids.index(other))]
    both: list[dict[str, Any]] = [{"stop_token_ids": [one, other]}, {"stop_token_ids": [one], "eos_token_id": other}]
    for given in both:
        (sequence,) = Answer(engine, request(loaded, max_new_tokens=24, **given)).sequences()
        assert (list(sequence.token_ids), sequence.finish_reason) == (expected, "stop")
    (found,) = Answer(
        engine, request(loaded, max_new_tokens=24, stop_token_ids=[one], eos_token_id=other, **beams)
    ).ids()
    (same,) = Answer(engine, request(loaded, max_new_tokens=24, eos_token_id=[other, one], **beams)).ids()
    assert found == same


def test_ignore_eos_goes_on_after_an_end(engine: Engine, loaded: LoadedModel) -> None:
    ids = plain(loaded)
    ends, stop = ids[5], next(token for token in ids[12:] if ids.index(token) >= 12)
    asked = request(loaded, max_new_tokens=24, eos_token_id=ends, ignore_eos=True)
    assert Answer(engine, asked).ids() == [tuple(ids)]
    assert warnings(asked) == ()
    (sequence,) = Answer(
        engine, request(loaded, max_new_tokens=24, eos_token_id=ends, ignore_eos=True, stop_token_ids=[stop])
    ).sequences()
    assert (list(sequence.token_ids), sequence.finish_reason) == (ids[: ids.index(stop) + 1], "stop")
    shown = request(loaded, max_new_tokens=24, eos_token_id=ends, ignore_eos=False)
    assert len(Answer(engine, shown).ids()[0]) == ids.index(ends) + 1


def test_a_minimum_holds_back_ignored_ends_too(engine: Engine, loaded: LoadedModel) -> None:
    """As vLLM, whose min_tokens masks all ends, also with ignore_eos."""
    ends = plain(loaded)[5]

    def hold_back(scores: Tensor, ids: list[int], answer: list[int]) -> None:
        if len(answer) < 9:
            scores[ends] = -torch.inf

    given: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 9, "ignore_eos": True, "eos_token_id": ends}
    assert Answer(engine, request(loaded, **given)).ids() == [tuple(reference(loaded.model, 24, hold_back))]


def test_allowed_token_ids_are_the_only_ones(engine: Engine, loaded: LoadedModel) -> None:
    allowed = list(range(300, 340))

    def only(scores: Tensor, ids: list[int], answer: list[int]) -> None:
        kept = scores[allowed].clone()
        scores[:] = -torch.inf
        scores[allowed] = kept

    (ids,) = Answer(engine, request(loaded, max_new_tokens=24, allowed_token_ids=allowed)).ids()
    assert list(ids) == reference(loaded.model, 24, only)
    drawn = request(loaded, max_new_tokens=24, allowed_token_ids=allowed, do_sample=True, num_return_sequences=3)
    assert all(set(ids) <= set(allowed) for ids in Answer(engine, drawn).ids())


def test_a_bad_word_is_looked_for_in_the_answer_alone(engine: Engine, loaded: LoadedModel) -> None:
    ids = plain(loaded)
    words = [[PROMPT[-1], ids[0]], ids[3:5], [ids[8]]]

    def ban(scores: Tensor, ids: list[int], answer: list[int]) -> None:
        for *before, last in words:
            if not before or answer[-len(before) :] == before:
                scores[last] = -torch.inf

    asked = request(loaded, max_new_tokens=24, eos_token_id=[])
    asked = replace(asked, parameters=replace(asked.parameters, bad_words_ids_of_answer=words))
    (found,) = Answer(engine, asked).ids()
    assert list(found) == reference(loaded.model, 24, ban)
    assert found[0] == ids[0]
    assert list(found) != ids


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"stop_token_ids": [704]}, "`stop_token_ids` holds token id 704"),
        ({"allowed_token_ids": [704]}, "`allowed_token_ids` holds token id 704"),
        ({"ignore_eos": True, "eos_token_id": 704}, "`eos_token_id` holds token id 704"),
        (
            {"allowed_token_ids": [5, 6], "suppress_tokens": [6, 5]},
            "`suppress_tokens` holds all of `allowed_token_ids`",
        ),
    ],
)
def test_what_the_vocabulary_does_not_have(
    engine: Engine, loaded: LoadedModel, given: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidRequest, match=text):
        engine.submit(request(loaded, **given), print)
