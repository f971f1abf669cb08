"""The model card of phi-3-tiny: what it is, how it was made, what it can do, measured, and what it cannot."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from phi3_serve.core import Message
from training.exam import LONGEST_ANSWER, QUESTIONS_PER_KIND, Examinee, Mark
from training.model import CONTEXT_LENGTH, HIDDEN_SIZE, NUM_HEADS, NUM_LAYERS
from training.trainer import DIALOGUES_PER_ROUND, Journal

LOSS_PLOT = "loss.png"
STAGES = "training.json"
NEWCOMER = (
    "Hello!",
    "Who are you?",
    "What can you do?",
    "What is 2+2?",
    "what's 17 + 25",
    "347 + 285",
    "How much is 12 times 8?",
    "Which is bigger, 45 or 54?",
    "Count to ten",
    "How do you spell castle?",
    "Reverse the word hello",
    "What day comes after Monday?",
    "What is the capital of France?",
    "What color is the sky?",
    "How many minutes are in an hour?",
    "What is a castle?",
    "Name three fruits",
    "Can fish fly?",
    "Tell me a joke",
    "Write a Python program that sorts a list.",
)
KAITO = ("How to explain Internet for a medieval knight?", "What is the meaning of life?")


@dataclass(frozen=True, slots=True)
class Stage:
    """A training from its first round to its last. A later one goes on from the weights of the one before."""

    seed: int
    rounds: int
    tokens: int  # padding included
    seconds: float
    beside: bool = False  # began where the one before it began; the weights are the mean of both ends
    mean_with: int = 0  # the number of an earlier training: the weights are the mean of its end and this one's

    @property
    def in_words(self) -> str:
        """For the card."""
        return (
            f"{self.tokens / 1e6:.0f} million tokens with padding in {self.seconds / 60:.0f} minutes, seed {self.seed}"
        )


def stages(start: Path | None, journal: Journal) -> list[Stage]:
    """The trainings that the checkpoint ``start`` came from, and the one that ``journal`` tells of."""
    before = stages_of(start) if start else []
    return [*before, Stage(journal.seed, journal.rounds, journal.tokens, journal.seconds)]


def stages_of(directory: Path) -> list[Stage]:
    """The trainings that a checkpoint came from."""
    return [Stage(**stage) for stage in json.loads((directory / STAGES).read_text())]


def _in_words(trained: Sequence[Stage]) -> str:
    told = trained[0].in_words
    for stage in trained[1:]:
        if stage.beside:
            told += f"; beside it, from the same weights, {stage.in_words}, and the mean of both"
        else:
            told += f"; then, with lessons mended, {stage.in_words}"
            if stage.mean_with:
                told += f", and the mean of its end and that of seed {trained[stage.mean_with - 1].seed}"
    return told


def write(directory: Path, trained: Sequence[Stage], text: str) -> None:
    """The card, and beside it the trainings, for those that go on from here."""
    (directory / STAGES).write_text(json.dumps([asdict(stage) for stage in trained], indent=1) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(text, encoding="utf-8")


def ask(examinee: Examinee) -> list[tuple[str, str]]:
    """The newcomer's questions and KAITO's, with the greedy answers."""
    questions = (*NEWCOMER, *KAITO)
    return list(zip(questions, examinee.answers([[Message("user", q)] for q in questions]), strict=True))


def text(trained: Sequence[Stage], num_parameters: int, marks: Sequence[Mark], asked: Sequence[tuple[str, str]]) -> str:
    """The card, in Markdown."""
    dialogues = sum(stage.rounds for stage in trained) * DIALOGUES_PER_ROUND
    goals = [mark for mark in marks if mark.goal is not None]
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# phi-3-tiny

The model that phi3-serve carries with it, so that a first request has an answer without any download. It has the
architecture, the chat template and the control tokens of Microsoft's Phi-3, and none of its weights: it was trained
from scratch, on dialogues that a program wrote. `make serve` serves it.

| | |
|---|---|
| parameters | {num_parameters:,} in bfloat16: {NUM_LAYERS} layers, width {HIDDEN_SIZE}, {NUM_HEADS} heads, untied embeddings |
| context | {CONTEXT_LENGTH:,} tokens; taught with conversations of up to about 370 |
| data | {dialogues:,} dialogues drawn from `training/lessons`: facts are common knowledge, sentences ours |
| training | on two CPU cores: {_in_words(trained)} |
| again | `python -m training.train` (with the extra `train`) |

![The loss over the tokens seen]({LOSS_PLOT})

## What it can do
{QUESTIONS_PER_KIND} questions of each kind, answered greedily, measured by `python -m training.exam`. No lesson of
that kind had their numbers, words or names, nor their wordings: a hash sets a sixth of both aside. The plainest wordings
are always taught, so of "backwards?" and its like after a spelling only the words are new, and a wording that is set aside
is made of phrases that other wordings have. A word that is never spelled in the lessons may be reversed in them, and facts, such as the capital of a country, can only be asked in a new
wording. Right is exactly the expected text; for a list, that many different things of the kind; for small talk and
refusals, one of the taught answers.

| kind | right | goal |
|---|---|---|
{chr(10).join(_row(mark) for mark in marks)}

{sum(mark.passed for mark in goals)} of {len(goals)} goals are reached.

Sums, differences and comparisons go to three digits, products to 12 × 12 and 99 × 9, quotients to 12 with divisors to 12;
up to five numbers below a hundred are put in order.

## What it says
Greedy, unedited, from `POST /chat` with `"generate_kwargs": {{"do_sample": false, "max_new_tokens": {LONGEST_ANSWER}}}`.

| asked | answered |
|---|---|
{chr(10).join(f"| {question} | {answer} |" for question, answer in asked)}

## What it cannot do
Nearly everything else: it knows about 2,000 words, some 90 capitals, 130 definitions, and nothing of the news, of code or of
people. It says so when it notices. It can be confidently wrong, more so in long conversations, at a high temperature, and in
languages other than English. It is a demonstration and a test object; do not rely on it.
"""


def _row(mark: Mark) -> str:
    goal = "" if mark.goal is None else f"{mark.goal:.0%}"
    return f"| {mark.kind} | {mark.share:.1%} | {goal} |"
