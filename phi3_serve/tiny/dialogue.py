"""Dialogues that teach phi-3-tiny and examine it.

A lesson draws one question with its answer. What it draws is either for learning or held out for the exam, by a hash
of the wording and of the operands, so that the two never meet.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from phi3_serve.core import Message

T = TypeVar("T")

# Around text that is learned letter by letter, because the usual tokens of a word hide its letters.
LETTERS_BEGIN, LETTERS_END = "\x02", "\x03"
HELD_OUT_SHARE = 6  # one wording and one set of operands in so many are kept for the exam

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, the answer that is taught, and which answers are right."""

    question: str
    answer: str
    brief: str | None = None  # the answer for somebody who asked for brevity
    accepts: Callable[[str], bool] | None = None  # None: the taught answer alone is right

    def is_right(self, answer: str) -> bool:
        """Whether ``answer`` answers the question."""
        return self.accepts(answer) if self.accepts else answer == plain(self.answer)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns up to the assistant's last answer, and the exchange that this answer belongs to."""

    turns: tuple[Message, ...]
    last: Exchange


def dialogue(*exchanges: Exchange, system: str | None = None) -> Dialogue:
    """The dialogue of these exchanges, in their order."""
    turns = [Message("system", system)] if system is not None else []
    for exchange in exchanges:
        turns += [Message("user", exchange.question), Message("assistant", exchange.answer)]
    return Dialogue(tuple(turns), exchanges[-1])


def letters(word: str) -> str:
    """``word``, marked to be learned letter by letter."""
    return f"{LETTERS_BEGIN}{word}{LETTERS_END}"


def plain(text: str) -> str:
    """``text`` without the marks of ``letters``."""
    return text.replace(LETTERS_BEGIN, "").replace(LETTERS_END, "")


class Draw:
    """Draws wordings and operands, of one side of the split only."""

    def __init__(self, rng: Random, *, exam: bool) -> None:
        self.rng = rng
        self.exam = exam

    def wording(self, wordings: Sequence[str], **operands: object) -> str:
        """A question: one of ``wordings``, each ``[a|b]`` in it decided, ``{operand}`` filled in.

        As people type, some come in small letters, without the last mark, or with a please.
        """
        template = self.fresh(lambda rng: _decide(rng.choice(wordings), rng))
        return _as_typed(template, self.rng).format(**operands)

    def fresh(self, make: Callable[[Random], T]) -> T:
        """What ``make`` draws, drawn again until it is of this side of the split."""
        for _ in range(1000):
            drawn = make(self.rng)
            if is_held_out(repr(drawn)) == self.exam:
                return drawn
        raise ValueError(f"a thousand draws gave nothing for the {'exam' if self.exam else 'lessons'}: {drawn!r}")

    def some(self, values: Sequence[T]) -> T:
        """One of ``values``, on both sides of the split."""
        return self.rng.choice(values)

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.rng.random() < probability


def is_held_out(text: str) -> bool:
    """Whether ``text`` is kept for the exam. The same on every machine and in every run."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def _decide(template: str, rng: Random) -> str:
    while found := _INNERMOST.search(template):
        template = template[: found.start()] + rng.choice(found[1].split("|")) + template[found.end() :]
    return template


def _as_typed(template: str, rng: Random) -> str:
    """``template`` as one of many people would type it."""
    habit = rng.random()
    if habit < 0.12:
        template = template.lower()
    elif habit < 0.2:
        template = template[:1].lower() + template[1:]
    if rng.random() < 0.2:
        template = template.rstrip("?.!")
    manner = rng.random()
    if manner < 0.03:
        template = "Please " + template[:1].lower() + template[1:]
    elif manner < 0.06:
        ending = template[len(template.rstrip("?.!")) :]
        template = f"{template.rstrip('?.!')}, please{ending}"
    elif manner < 0.1:
        template = rng.choice(("Hi! ", "Hello, ", "Hey, ", "OK, ", "So, ", "Now: ", "Hi, ", "And ")) + template
    return template
