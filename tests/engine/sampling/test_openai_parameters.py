"""What OpenAI's API has beside transformers: penalties over the answer, and log-probabilities of the model itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from phi3_serve.engine.engine import Engine
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.errors import InvalidRequest
from tests.engine.asking import PROMPT, Answer, request
from tests.support import ENDLESS


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    engine = Engine(loaded)
    yield engine
    engine.close()


@torch.inference_mode()
def reference(model: Any, num_tokens: int, presence: float, frequency: float) -> list[int]:
    """The definition, word for word: mu[j] - c[j] * frequency - (c[j] > 0) * presence, one token after the other."""
    ids, counts = list(PROMPT), torch.zeros(model.config.vocab_size)
    for _ in range(num_tokens):
        scores = model(torch.tensor([ids])).logits[0, -1].float()
        scores = scores - counts * frequency - (counts > 0) * presence
        scores[ENDLESS["suppress_tokens"]] = -torch.inf
        ids.append(int(scores.argmax()))
        counts[ids[-1]] += 1
    return ids[len(PROMPT) :]


@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 2.0), (2.0, 0.0), (1.5, 0.75), (-2.0, 0.0), (0.0, -1.0)])
def test_penalties_are_those_of_the_definition(
    engine: Engine, loaded: LoadedModel, presence: float, frequency: float
) -> None:
    given = {"presence_penalty": presence, "frequency_penalty": frequency, "max_new_tokens": 48, **ENDLESS}
    (ids,) = Answer(engine, request(loaded, **given)).ids()
    assert list(ids) == reference(loaded.model, 48, presence, frequency)


def test_penalties_change_the_answer(engine: Engine, loaded: LoadedModel) -> None:
    plain, penalised = (
        Answer(engine, request(loaded, name, max_new_tokens=48, frequency_penalty=value, **ENDLESS)).ids()
        for name, value in (("a", 0.0), ("b", 2.0))
    )
    assert plain != penalised


@pytest.mark.parametrize("drawn", [{}, {"do_sample": True, "seed": 3, "top_k": 5}, {"prompt_lookup_num_tokens": 4}])
@torch.inference_mode()
def test_logprobs_are_those_of_the_model_itself(engine: Engine, loaded: LoadedModel, drawn: dict[str, Any]) -> None:
    given = {"max_new_tokens": 24, "top_logprobs": 4, "repetition_penalty": 1.3, **ENDLESS, **drawn}
    (sequence,) = Answer(engine, request(loaded, **given)).sequences()
    logits = loaded.model(torch.tensor([[*PROMPT, *sequence.token_ids]])).logits[0, len(PROMPT) - 1 : -1].float()
    expected = logits.log_softmax(-1)
    assert sequence.logprobs is not None
    assert len(sequence.logprobs) == len(sequence.token_ids) == 24
    for token, row, of_token in zip(sequence.token_ids, expected, sequence.logprobs, strict=True):
        assert of_token.chosen == pytest.approx(float(row[token]), abs=1e-4)
        assert [v for _, v in of_token.likeliest] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)


def test_each_sequence_has_logprobs_of_its_own(engine: Engine, loaded: LoadedModel) -> None:
    given = {"max_new_tokens": 8, "top_logprobs": 0, "do_sample": True, "num_return_sequences": 3, **ENDLESS}
    sequences = Answer(engine, request(loaded, **given)).sequences()
    assert [len(s.logprobs or ()) for s in sequences] == [8, 8, 8]
    assert all(not of_token.likeliest for s in sequences for of_token in s.logprobs or ())
    assert len({tuple(t.chosen for t in s.logprobs or ()) for s in sequences}) == 3


def test_beams_have_none(loaded: LoadedModel) -> None:
    with pytest.raises(InvalidRequest, match=r"`top_logprobs` is not offered with beam search \(`num_beams`\)"):
        request(loaded, top_logprobs=1, num_beams=2)
