"""Answers whose text is constrained, in a batch with others. ``parity`` compares them with transformers."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from phi3_serve.core.constraint import Constraint
from phi3_serve.core.engine_event import Finished, NewTokens
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.generation import Generation
from phi3_serve.engine.loaded_model import LoadedModel
from phi3_serve.engine.memory import EngineSizes
from phi3_serve.engine.scheduler import Plan
from phi3_serve.errors import InvalidRequest
from phi3_serve.text.constraint import Grammars
from phi3_serve.text.tokenizer import Phi3Tokenizer
from tests.engine.asking import Answer, request

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NUM_TOKENS = 80  # more than any answer has


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[Engine]:
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=256, token_budget=96, max_rows=64))
    yield engine
    engine.close()
    engine.blocks.check_integrity([])


class Asker:
    """Makes constrained requests, and reads their answers."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.tokenizer = Phi3Tokenizer(loaded.tokenizer)
        self._grammars = Grammars(self.tokenizer, loaded.vocab_size)

    def request(self, name: str = "r", **given: Any) -> EngineRequest:
        made = request(self._loaded, name, **{"max_new_tokens": NUM_TOKENS, "do_sample": False, **given})
        wanted = made.parameters.structured_output
        if wanted is None:
            return made
        ends = made.parameters.eos_token_ids
        return replace(made, constraint=self._grammars.constraint(wanted, ends=ends, is_start_of_text=True))

    def text(self, sequence: GeneratedSequence) -> str:
        return self.tokenizer.decode(sequence.token_ids)


@pytest.fixture(scope="module")
def asker(loaded: LoadedModel) -> Asker:
    return Asker(loaded)


MODES: list[dict[str, Any]] = [
    {},
    {"do_sample": True, "temperature": 2.0, "top_k": 0},
    {"do_sample": True, "top_k": 5, "num_return_sequences": 4},
    {"do_sample": True, "seed": 5, "num_return_sequences": 3},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True},
    {"num_beams": 3, "do_sample": True, "top_k": 0},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 1.0, "num_return_sequences": 2},
    {"prompt_lookup_num_tokens": 8},
    {"prompt_lookup_num_tokens": 8, "do_sample": True, "seed": 1},
    {"guidance_scale": 1.5},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 6},
    {"remove_invalid_values": True, "renormalize_logits": True},
    {"exponential_decay_length_penalty": (1, 1.5)},
    {"output_scores": True, "top_logprobs": 2},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_every_finished_answer_validates(engine: Engine, asker: Asker, mode: dict[str, Any]) -> None:
    sequences = Answer(engine, asker.request(json_schema=PERSON, **mode)).sequences()
    assert [sequence.finish_reason for sequence in sequences] == ["stop"] * len(sequences)
    for sequence in sequences:
        person = json.loads(asker.text(sequence))
        assert list(person) == ["name", "age"]
        assert isinstance(person["name"], str)
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 99


def test_the_batch_is_mixed_and_nobody_changes(engine: Engine, asker: Asker) -> None:
    """Rows without a constraint get what they get alone, and so do those with one."""
    plain = [asker.request(f"p{n}", prompt=(389 + n, 512, 380), max_new_tokens=30) for n in range(3)]
    structured = [asker.request(f"s{n}", json_schema=PERSON, prompt=(389 + n, 512, 380)) for n in range(3)]
    alone = [Answer(engine, replace(asked, request_id=f"{asked.request_id}a")).ids() for asked in (*plain, *structured)]
    together = [Answer(engine, asked) for asked in (*plain, *structured)]
    assert [answer.ids() for answer in together] == alone


def test_streamed_tokens_are_those_of_the_answer(engine: Engine, asker: Asker) -> None:
    *deltas, last = Answer(engine, asker.request(json_schema=PERSON, stream=True)).all()
    assert isinstance(last, Finished)
    streamed = [token for delta in deltas if isinstance(delta, NewTokens) for token in delta.token_ids]
    assert tuple(streamed) == last.sequences[0].token_ids
    json.loads(asker.text(last.sequences[0]))


def test_an_answer_that_runs_out_of_tokens_says_so(engine: Engine, asker: Asker) -> None:
    (sequence,) = Answer(engine, asker.request(json_schema=PERSON, max_new_tokens=5)).sequences()
    assert sequence.finish_reason == "length"
    assert len(sequence.token_ids) == 5


def test_an_answer_that_is_complete_with_its_last_token_is_finished(engine: Engine, asker: Asker) -> None:
    """It needs no token for the end."""
    (whole,) = Answer(engine, asker.request(choice=["yes", "no"])).sequences()
    *before, _ = whole.token_ids
    (short,) = Answer(engine, asker.request(choice=["yes", "no"], max_new_tokens=len(before))).sequences()
    assert short.token_ids == tuple(before)
    assert short.finish_reason == "stop"
    (open_ended,) = Answer(engine, asker.request(regex="a+", max_new_tokens=3, min_new_tokens=3)).sequences()
    assert open_ended.finish_reason == "length"  # it matches, but could have gone on


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_answer_that_can_only_end_ends_before_the_minimum(
    engine: Engine, asker: Asker, mode: dict[str, Any]
) -> None:
    for sequence in Answer(engine, asker.request(choice=["yes", "no"], min_new_tokens=40, **mode)).sequences():
        assert asker.text(sequence) in ("yes", "no")
        assert sequence.finish_reason == "stop"
    for sequence in Answer(engine, asker.request(regex="a{1,30}", min_new_tokens=12, **mode)).sequences():
        text = asker.text(sequence)
        assert len(sequence.token_ids) > 12 or len(text) == 30
        assert re.fullmatch("a{1,30}", text)


@pytest.mark.parametrize(
    "given",
    [
        {"regex": "[0-9]+", "allowed_token_ids": [400, 401, 402]},
        {"regex": "x", "suppress_tokens": list(range(3, 703))},
        {"choice": ["yes"], "forced_eos_token_id": 643, "max_new_tokens": 1},
        {"choice": ["yes"], "num_beams": 2, "do_sample": True, "suppress_tokens": list(range(3, 703))},
    ],
    ids=str,
)
def test_a_contradiction_fails_alone(engine: Engine, asker: Asker, given: dict[str, Any]) -> None:
    company = [asker.request(f"c{n}", json_schema=PERSON, prompt=(389 + n, 512)) for n in range(3)]
    expected = [Answer(engine, replace(asked, request_id=f"{asked.request_id}a")).ids() for asked in company]
    answers = [Answer(engine, asked) for asked in company]
    event = Answer(engine, asker.request("contradiction", **given)).last()
    assert isinstance(event, Failed)
    assert isinstance(event.error, InvalidRequest)
    kind = next(iter(given))
    assert f"`{kind}` allows none of the tokens that the other parameters leave" in event.error.message
    assert event.error.param == kind
    assert [answer.ids() for answer in answers] == expected


def test_beam_search_does_not_make_answers_up(engine: Engine, asker: Asker) -> None:
    """Where generate() fills the answer up with padding."""
    one = asker.request(choice=["no"], num_beams=2, num_return_sequences=2, allowed_token_ids=[361, 643, 342, 350])
    event = Answer(engine, one).last()
    assert isinstance(event, Failed) or all(
        asker.text(sequence) == "no"
        for sequence in event.sequences  # type: ignore[union-attr]
    )


@pytest.mark.parametrize(
    "mode", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 2, "num_return_sequences": 2}], ids=str
)
def test_preemption_changes_nothing(loaded: LoadedModel, asker: Asker, mode: dict[str, Any]) -> None:
    steps = 0
    engine: Engine

    def between_steps(_: object) -> None:
        nonlocal steps
        steps += 1
        scheduler = engine._core.scheduler
        if steps % 7 == 0 and scheduler.running:
            scheduler.preempt_youngest(Plan())

    asked = asker.request(json_schema=PERSON, **mode)
    undisturbed = Engine(loaded, sizes=EngineSizes(num_blocks=64, token_budget=96, max_rows=64))
    expected = Answer(undisturbed, asked).ids()
    undisturbed.close()
    engine = Engine(loaded, sizes=EngineSizes(num_blocks=64, token_budget=96, max_rows=64), on_step=between_steps)
    assert Answer(engine, replace(asked, request_id="again")).ids() == expected
    assert steps > 14
    engine.close()


def test_drafts_are_checked_before_they_run(engine: Engine, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that the grammar does not allow costs no forward pass, and one that it allows saves some."""
    tokenizer = asker.tokenizer
    text = '{"name":"Ann","age":7} {"name":"Ann","age":7} {"name":"Ann'
    drafts: list[tuple[int, ...]] = []
    add_draft = engine._core.scheduler.add_draft

    def record(plan: Plan, generation: Generation, draft: tuple[int, ...]) -> None:
        drafts.append(draft)
        add_draft(plan, generation, draft)

    monkeypatch.setattr(engine._core.scheduler, "add_draft", record)
    prompt = tuple(tokenizer.encode_text(text))
    given = {"prompt": prompt, "json_schema": PERSON}
    (plain,) = Answer(engine, asker.request("plain", **given)).ids()
    (drafted,) = Answer(engine, asker.request("drafted", prompt_lookup_num_tokens=16, **given)).ids()
    assert drafted == plain
    assert drafts
    for draft in drafts:
        assert b"} {" not in b"".join(map(tokenizer.piece, draft))


def test_a_constraint_that_fails_fails_alone(engine: Engine, asker: Asker) -> None:
    class Broken:
        """Becomes too complex after three tokens."""

        is_finished = False

        def __init__(self, inner: Constraint, num_left: int = 3) -> None:
            self._inner = inner
            self._num_left = num_left

        def mask(self) -> bytes:
            if not self._num_left:
                raise InvalidRequest("`regex` is too complex", "regex")
            return self._inner.mask()

        def advance(self, token: int) -> bool:
            self._num_left -= 1
            return self._inner.advance(token)

        def num_allowed(self, tokens: Any) -> int:
            return self._inner.num_allowed(tokens)

        def fork(self) -> "Broken":
            return Broken(self._inner.fork(), self._num_left)

    asked = asker.request("broken", json_schema=PERSON)
    assert asked.constraint is not None
    company = [asker.request(f"k{n}", json_schema=PERSON, prompt=(389 + n, 512)) for n in range(2)]
    answers = [Answer(engine, one) for one in company]
    event = Answer(engine, replace(asked, constraint=Broken(asked.constraint))).last()
    assert isinstance(event, Failed)
    assert event.error.message == "`regex` is too complex"
    for answer in answers:
        assert json.loads(asker.text(answer.sequences()[0]))


def test_a_regex_is_the_whole_text(engine: Engine, asker: Asker) -> None:
    pattern = r"[a-c]{3,6} (the|a) \d{2}"
    for seed in range(5):
        asked = asker.request(f"x{seed}", regex=pattern, do_sample=True, seed=seed, temperature=3.0, top_k=0)
        (sequence,) = Answer(engine, asked).sequences()
        assert re.fullmatch(pattern, asker.text(sequence))
