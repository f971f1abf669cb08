"""The embedded checkpoint: what its card promises, by the code that people call."""

import re
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from phi3_serve.catalogue import EMBEDDED_TINY
from training import card
from training.exam import LONGEST_ANSWER, QUESTIONS_PER_KIND, Examinee, Mark, examine

CARD = (EMBEDDED_TINY / "README.md").read_text(encoding="utf-8")
MAX_BYTES = 16 * 2**20


@pytest.fixture(scope="module")
def tiny(make_tiny_app: Callable[[], FastAPI]) -> Iterator[TestClient]:
    with TestClient(make_tiny_app()) as client:
        yield client


def promised() -> list[tuple[str, str]]:
    """Question and answer, row by row."""
    table = CARD.split("## What it says")[1].split("## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", table, re.M)
    return [row for row in rows if row != ("asked", "answered")]


def test_the_card_has_twenty_questions_of_a_newcomer_and_kaitos_two() -> None:
    assert [question for question, _ in promised()] == [*card.NEWCOMER, *card.KAITO]
    assert len(card.NEWCOMER) == 20


@pytest.mark.parametrize(("question", "answer"), promised())
def test_it_says_what_the_card_shows_and_stops_by_itself(tiny: TestClient, question: str, answer: str) -> None:
    messages = [{"role": "user", "content": question}]
    kwargs = {"do_sample": False, "max_new_tokens": LONGEST_ANSWER, "return_dict_in_generate": True}
    chat = tiny.post("/chat", json={"messages": messages, "generate_kwargs": kwargs}).json()
    assert chat["Result"] == answer
    assert [s["finish_reason"] for s in chat["Details"]["sequences"]] == ["stop"]
    raw = {
        "prompt": f"<|user|>\n{question}<|end|>\n<|assistant|>",
        "return_full_text": False,
        "generate_kwargs": kwargs,
    }
    # a raw prompt's answer goes on with its text, so it keeps the space before its first word
    assert tiny.post("/chat", json=raw).json()["Result"] == f" {answer}"
    body = {"model": "phi-3-tiny", "messages": messages, "temperature": 0}
    (choice,) = tiny.post("/v1/chat/completions", json=body).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (answer, "stop")


@pytest.mark.slow
def test_it_is_as_good_as_its_card_says() -> None:
    """A smaller exam than the card's, of other questions; forty of a kind may miss its share by a quarter."""
    examinee = Examinee(EMBEDDED_TINY)
    marks = list(examine(examinee, 40, seed=1))
    examinee.close()
    said = {kind: float(share) / 100 for kind, share in re.findall(r"^\| (.*?) \| (\d+\.\d)% \|", CARD, re.M)}
    assert not [(mark.kind, mark.share) for mark in marks if mark.share < said[mark.kind] - 0.25]
    assert sum(mark.share - said[mark.kind] for mark in marks) / len(marks) > -0.04


def test_it_is_small_enough_to_be_packaged() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED_TINY.iterdir()) < MAX_BYTES


def test_the_card_is_what_its_script_writes() -> None:
    """With the marks and answers that the card has; the exam itself takes minutes."""
    from training.curriculum import LESSONS

    shares = dict(re.findall(r"^\| (.*?) \| (\d+\.\d)% \|", CARD, re.M))
    marks = [
        Mark(
            lesson.kind,
            QUESTIONS_PER_KIND,
            round(float(shares[lesson.kind]) / 100 * QUESTIONS_PER_KIND),
            lesson.goal,
            (),
        )
        for lesson in LESSONS
    ]
    num_parameters = int(re.search(r"\| parameters \| ([\d,]+)", CARD)[1].replace(",", ""))  # type: ignore[index]
    assert card.text(card.stages_of(EMBEDDED_TINY), num_parameters, marks, promised()) == CARD


def test_the_card_has_a_row_for_every_kind_and_its_plot() -> None:
    from training.curriculum import LESSONS

    for lesson in LESSONS:
        assert re.search(rf"^\| {lesson.kind} \| \d+\.\d% \|", CARD, re.M), lesson.kind
    assert (EMBEDDED_TINY / card.LOSS_PLOT).read_bytes().startswith(b"\x89PNG")
