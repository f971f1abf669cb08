"""The split between lessons and exam, and how wordings become questions."""

from random import Random

import pytest

from training.dialogue import Draw, Exchange, dialogue, is_held_out, letters, plain

WORDINGS = (
    "What is {a} + {b}?",
    "[What is|What's] {a} [+|plus] {b}?",
    "[Add|Sum] {a} and {b}.",
    "{a}+{b}",
    "How much is {a} and {b}?",
)


def test_no_operand_of_the_exam_is_in_a_lesson() -> None:
    lesson, exam = (Draw(Random(3), exam=exam) for exam in (False, True))
    taught = {lesson.fresh(lambda rng: rng.randint(0, 200)) for _ in range(2000)}
    asked = {exam.fresh(lambda rng: rng.randint(0, 200)) for _ in range(500)}
    assert taught.isdisjoint(asked)
    assert taught | asked == set(range(201))
    assert 20 <= len(asked) <= 50  # a sixth of 201


def test_no_wording_of_the_exam_is_in_a_lesson() -> None:
    seen: dict[bool, set[str]] = {False: set(), True: set()}
    for exam, wordings in seen.items():
        draw = Draw(Random(4), exam=exam)
        for _ in range(1500):
            question = draw.wording(WORDINGS, a="A", b="B").lower()
            wordings.add(question.rstrip("?.").replace(", please", ""))
    assert all(seen.values())
    # People's habits (small letters, a please, a greeting) come on top of a wording and are on both sides.
    assert not {w for w in seen[True] if w in seen[False]}


def test_the_plainest_wording_is_taught_and_no_phrase_is_only_in_the_exam() -> None:
    taught, asked = (
        {Draw(Random(n), exam=exam).wording(WORDINGS, a="A", b="B").strip("?.").lower() for n in range(2000)}
        for exam in (False, True)
    )
    assert any(question.endswith("what is a + b") for question in taught)
    assert not any(question.endswith("what is a + b") for question in asked)
    assert {word for q in asked for word in q.split()} <= {word for q in taught for word in q.split()}


def test_a_handful_of_wordings_keeps_one_for_the_exam() -> None:
    for wordings in (("[{a} in|In] French?",), ("{a}?", "[What|Which] is {a}?")):
        taught, asked = (
            {Draw(Random(n), exam=exam).wording(wordings, a="A").strip("?").lower() for n in range(200)}
            for exam in (False, True)
        )
        assert taught
        assert asked
        assert taught.isdisjoint(asked)


def test_the_split_is_the_same_everywhere() -> None:
    assert [n for n in range(30) if is_held_out(repr(n))] == [3, 18, 22]


def test_a_wording_without_a_held_out_variant_is_a_mistake_of_the_lesson() -> None:
    with pytest.raises(ValueError, match="a thousand draws gave nothing for the exam"):
        Draw(Random(0), exam=True).fresh(lambda rng: 1)


def test_choices_are_decided_from_the_inside() -> None:
    questions = {Draw(Random(n), exam=False).wording(("[a[b|c]|d|e]{x}",), x="!") for n in range(90)}
    assert {q.replace(", please", "").strip("!").lower()[-2:].strip() for q in questions} <= {
        "ab",
        "ac",
        "d",
        " d",
        ", d",
        "e",
        " e",
        ", e",
    }


def test_the_taught_answer_is_right_without_its_marks() -> None:
    exchange = Exchange("Reverse cat", f"c-a-t: {letters('tac')}")
    assert plain(exchange.answer) == "c-a-t: tac"
    assert exchange.is_right("c-a-t: tac")
    assert not exchange.is_right("c-a-t: cat")
    assert [m.role for m in dialogue(exchange, exchange, system="Be brief.").turns] == ["system"] + [
        "user",
        "assistant",
    ] * 2
