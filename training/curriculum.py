"""The lessons by kind, how often each is drawn, and an endless iterator of dialogues."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from training.dialogue import Dialogue, Draw, Exchange, dialogue
from training.lessons import arithmetic, conversation, followups, manners, numbers, words, world


@dataclass(frozen=True, slots=True)
class Lesson:
    """One kind of dialogue. A closed kind has one right answer, or a set of answers that a program can check."""

    kind: str
    weight: float  # relative frequency
    late_weight: float  # relative frequency late in the training, when only the hard kinds need practice
    draw: Callable[[Draw], Exchange | Dialogue]
    goal: float | None = 0.98  # share of exact answers in the exam; None for an open kind

    def dialogue(self, draw: Draw) -> Dialogue:
        """One dialogue of this kind."""
        drawn = self.draw(draw)
        return drawn if isinstance(drawn, Dialogue) else dialogue(drawn)


LESSONS: tuple[Lesson, ...] = (
    Lesson("addition", 8, 6, arithmetic.addition, 0.95),
    Lesson("subtraction", 9, 11, arithmetic.subtraction, 0.95),
    Lesson("multiplication", 4, 5, arithmetic.multiplication, 0.95),
    Lesson("division", 5, 9, arithmetic.division, 0.95),
    Lesson("sums of three", 1.5, 1.5, arithmetic.three_terms, 0.95),
    Lesson("comparison", 5, 9, numbers.comparison),
    Lesson("counting", 3, 3, numbers.counting),
    Lesson("ordering", 4, 9, numbers.ordering),
    Lesson("even or odd", 1.5, 1.5, numbers.even_or_odd),
    Lesson("spelling", 6, 6, words.spelling),
    Lesson("reversing", 6, 7, words.reversing),
    Lesson("letters", 6, 14, words.letter_questions),
    Lesson("repeating", 7, 18, words.repeating),
    Lesson("opposites", 1.5, 1, words.opposites),
    Lesson("plurals", 1, 0.7, words.plurals),
    Lesson("other languages", 1.5, 1, words.abroad),
    Lesson("capitals", 4, 3, world.capitals),
    Lesson("calendar", 3, 2.5, world.calendar),
    Lesson("colours", 2, 1, world.colours),
    Lesson("units", 2, 1.5, world.units),
    Lesson("definitions", 4, 3, world.definitions),
    Lesson("facts", 2, 1, world.facts),
    Lesson("membership", 4, 3, world.membership),
    Lesson("yes or no", 2.5, 3, world.yes_or_no),
    Lesson("animal sounds", 0.7, 0.5, world.sounds),
    Lesson("lists", 4, 2.5, world.lists),
    Lesson("small talk", 5, 6, conversation.small_talk, None),
    Lesson("KAITO's questions", 1.5, 1, conversation.essays, None),
    Lesson("outside its range", 4, 3, conversation.refusal, None),
    Lesson("unknown words", 2, 2, conversation.unknown_word, None),
    Lesson("follow-ups", 9, 17, followups.follow_up),
    Lesson("system prompts", 9, 14, manners.with_system_prompt),
)


def dialogues(rng: Random, *, late: bool = False) -> Iterator[Dialogue]:
    """An endless iterator of training dialogues."""
    draw = Draw(rng, exam=False)
    weights = [lesson.late_weight if late else lesson.weight for lesson in LESSONS]
    while True:
        yield rng.choices(LESSONS, weights)[0].dialogue(draw)
