"""Dialogues for the training and the exam of phi-3-tiny.

A lesson draws one question with its answer. A hash of the wording and of the operands decides whether a question is
for training or held out for the exam. Within a kind of question the two sets are disjoint.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

from phi3_serve.core.prompt import Message

T = TypeVar("T")

# Marks around text that is encoded letter by letter: the usual tokens of a word hide its letters.
LETTERS_BEGIN, LETTERS_END = "\x02", "\x03"
HELD_OUT_SHARE = 6  # one in six wordings and one in six sets of operands are held out for the exam

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, the taught answer, and a check of other answers."""

    question: str
    answer: str
    brief: str | None = None  # the answer under a system prompt that asks for brevity
    accepts: Callable[[str], bool] | None = None  # None: only the taught answer is right

    def is_right(self, answer: str) -> bool:
        """Whether ``answer`` is right."""
        return self.accepts(answer) if self.accepts else answer == plain(self.answer)


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns up to the assistant's last answer, and the exchange of that answer."""

    turns: tuple[Message, ...]
    last: Exchange


def dialogue(*exchanges: Exchange, system: str | None = None) -> Dialogue:
    """The dialogue of these exchanges in order."""
    turns = [Message("system", system)] if system is not None else []
    for exchange in exchanges:
        turns += [Message("user", exchange.question), Message("assistant", exchange.answer)]
    return Dialogue(tuple(turns), exchanges[-1])


def letters(word: str) -> str:
    """``word`` with the marks for letter-by-letter encoding."""
    return f"{LETTERS_BEGIN}{word}{LETTERS_END}"


def plain(text: str) -> str:
    """``text`` without the marks of ``letters``."""
    return text.replace(LETTERS_BEGIN, "").replace(LETTERS_END, "")


class Draw:
    """Draws wordings and operands from one side of the split: training or exam."""

    def __init__(self, rng: Random, *, exam: bool) -> None:
        self.rng = rng
        self.exam = exam

    def wording(self, wordings: Sequence[str], **operands: object) -> str:
        """A question: one of ``wordings``, with each ``[a|b]`` decided and each ``{operand}`` filled in.

        Some questions come in lower case, without the last punctuation mark, or with "please", as people type.
        """
        held_out = _held_out_wordings(tuple(wordings))
        for _ in range(10_000):
            template = _decide(self.rng.choice(wordings), self.rng)
            if (template in held_out) == self.exam or not held_out:
                return _as_typed(template, self.rng).format(**operands)
        raise ValueError(f"no wording for the {'exam' if self.exam else 'lessons'} among {wordings}")

    def fresh(self, make: Callable[[Random], T]) -> T:
        """A draw of ``make`` on this side of the split; other draws are repeated."""
        for _ in range(1000):
            drawn = make(self.rng)
            if is_held_out(repr(drawn)) == self.exam:
                return drawn
        raise ValueError(f"a thousand draws gave nothing for the {'exam' if self.exam else 'lessons'}: {drawn!r}")

    def some(self, values: Sequence[T]) -> T:
        """One of ``values``; the split does not apply."""
        return self.rng.choice(values)

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.rng.random() < probability


def is_held_out(text: str) -> bool:
    """Whether ``text`` is held out for the exam. The result is the same on every machine and in every run."""
    return _digest(text)[0] % HELD_OUT_SHARE == 0


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@cache
def _held_out_wordings(wordings: tuple[str, ...]) -> frozenset[str]:
    """The decided wordings that are held out for the exam.

    The hash decides, with three exceptions. A wording without alternatives is the plainest and always taught.
    A wording with a phrase that no other wording teaches is always taught. If nothing is left, one wording is held out
    anyway. If no wording has alternatives, all wordings are on both sides and only the operands differ.
    """
    variants = [set(_variants(template)) for template in wordings]
    plainest = {_spoken(text) for several in variants if len(several) == 1 for text, _ in several}
    phrases = {_spoken(text): chosen for several in variants for text, chosen in several}
    chosen = sorted(phrases.keys() - plainest, key=_digest)

    def kept(candidates: list[str]) -> set[str]:
        taught = "\n".join(phrases.keys() - set(candidates))
        return {text for text in candidates if all(_spoken(phrase) in taught for phrase in phrases[text])}

    fair = kept([text for text in chosen if is_held_out(text)])
    fair = fair or next(filter(None, (kept([text]) for text in chosen)), set(chosen[:1]))
    return frozenset(text for several in variants for text, _ in several if _spoken(text) in fair)


def _variants(template: str, phrases: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each way to decide ``template``, with the chosen phrases."""
    found = _INNERMOST.search(template)
    if not found:
        yield template, phrases
        return
    for phrase in found[1].split("|"):
        yield from _variants(template[: found.start()] + phrase + template[found.end() :], (*phrases, phrase))


def _spoken(text: str) -> str:
    """``text`` in lower case without punctuation, each word between two spaces.

    ``What's up?`` and ``what's up`` are one wording.
    """
    return "".join(f" {word} " for word in re.findall(r"[^\s?.!,:;]+", text.lower())) or " "


def _decide(template: str, rng: Random) -> str:
    while found := _INNERMOST.search(template):
        template = template[: found.start()] + rng.choice(found[1].split("|")) + template[found.end() :]
    return template


def _as_typed(template: str, rng: Random) -> str:
    """``template`` with one of the habits of people who type."""
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
        opening = rng.choice(("Hi! ", "Hello! ", "Hey, ", "OK, ", "So, ", "Now: ", "Hi, ", "And "))
        template = opening + (template if opening.endswith("! ") else template[:1].lower() + template[1:])
    return template
