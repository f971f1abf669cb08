"""Every lesson, on both sides of the split: its own answers are right, and the sums are those of Python."""

import re
from random import Random

import pytest

from training.curriculum import LESSONS, Lesson, dialogues
from training.dialogue import Draw, plain
from training.lessons.conversation import SUBJECTS
from training.lessons.facts import CATEGORIES, DEFINITIONS


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.kind)
@pytest.mark.parametrize("exam", [False, True])
def test_the_taught_answer_is_right(lesson: Lesson, exam: bool) -> None:
    draw = Draw(Random(1), exam=exam)
    for _ in range(1000):
        drawn = lesson.dialogue(draw)
        question, answer = drawn.turns[-2:]
        assert (question.role, answer.role) == ("user", "assistant")
        assert drawn.last.is_right(plain(answer.content)), drawn
        assert not drawn.last.is_right(plain(answer.content) + "?"), drawn
        assert not re.search(r"[\[\]{}]|\| ", question.content), question  # a wording that was not decided


def test_every_equation_holds() -> None:
    draw, checked = Draw(Random(2), exam=False), 0
    sums = [
        lesson for lesson in LESSONS if lesson.kind in ("addition", "subtraction", "multiplication", "sums of three")
    ]
    for lesson in sums:
        for _ in range(1000):
            answer = lesson.dialogue(draw).last.answer.replace("×", "*")
            for left, right in re.findall(r"([\d+*\- ]+?) = (-?\d+)", answer):
                assert eval(left) == int(right), answer
                checked += 1
    assert checked > 6000


def test_a_quotient_comes_back() -> None:
    draw = Draw(Random(3), exam=False)
    lesson = next(lesson for lesson in LESSONS if lesson.kind == "division")
    for _ in range(1000):
        answer = lesson.dialogue(draw).last.answer
        if taken := re.match(r"Taking away (\d+): (.*?)\.", answer):
            steps = [(int(left), int(count)) for left, count in re.findall(r"(\d+) \((\d+)\)", taken[2])]
            divisor, dividend = int(taken[1]), steps[0][0] + int(taken[1])
            assert steps == [(dividend - n * divisor, n) for n in range(1, dividend // divisor + 1)]
        if "it is" in answer:
            factor, other, product = map(int, re.search(r"So (\d+) × (\d+) = (\d+)", answer).groups())  # type: ignore[union-attr]
            assert factor * other == product
        elif "zero" not in answer:
            a, b, quotient, remainder = re.search(r"(\d+) / (\d+) = (\d+)(?:, remainder (\d+))?\.", answer).groups()  # type: ignore[union-attr]
            assert divmod(int(a), int(b)) == (int(quotient), int(remainder or 0))


def test_nothing_is_refused_that_could_be_answered() -> None:
    known = {*DEFINITIONS, *(item.lower() for category in CATEGORIES for item in category.items)}
    assert known.isdisjoint(SUBJECTS)


def test_dialogues_follow_from_the_seed() -> None:
    first, again, other = (dialogues(Random(seed)) for seed in ("1/0", "1/0", "1/1"))
    drawn = [next(first).turns for _ in range(200)]
    assert drawn == [next(again).turns for _ in range(200)]
    assert drawn != [next(other).turns for _ in range(200)]
