"""The model card of phi-3-tiny: what it is, how it was made, what it can do by measurement, and its limits."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from phi3_serve.core.prompt import Message
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
    """One training. A later one starts from the weights of the one before."""

    seed: int
    rounds: int
    tokens: int  # padding included
    seconds: float
    beside: bool = False  # same start as the training before; the weights are the mean of the two results
    mean_with: int = 0  # number of an earlier training (from 1); the weights are the mean of its result and this one

    @property
    def in_words(self) -> str:
        """One clause for the card."""
        return (
            f"{self.tokens / 1e6:.0f} million tokens with padding in {self.seconds / 60:.0f} minutes, seed {self.seed}"
        )


def stages(start: Path | None, journal: Journal) -> list[Stage]:
    """The trainings of the checkpoint ``start``, then the training in ``journal``."""
    before = stages_of(start) if start else []
    return [*before, Stage(journal.seed, journal.rounds, journal.tokens, journal.seconds)]


def stages_of(directory: Path) -> list[Stage]:
    """The trainings of a checkpoint, oldest first."""
    return [Stage(**stage) for stage in json.loads((directory / STAGES).read_text())]


def _in_words(trained: Sequence[Stage]) -> str:
    told = trained[0].in_words
    for stage in trained[1:]:
        if stage.beside:
            told += f"; beside it, from the same weights, {stage.in_words}, and the mean of both"
        else:
            told += f"; then, with corrected lessons, {stage.in_words}"
            if stage.mean_with:
                told += f", and the mean of this training and that of seed {trained[stage.mean_with - 1].seed}"
    return told


def write(directory: Path, trained: Sequence[Stage], text: str) -> None:
    """Write the card, and the trainings for a later training from this checkpoint."""
    (directory / STAGES).write_text(json.dumps([asdict(stage) for stage in trained], indent=1) + "\n", encoding="utf-8")
    (directory / "README.md").write_text(text, encoding="utf-8")


def ask(examinee: Examinee) -> list[tuple[str, str]]:
    """The questions of the card with their greedy answers."""
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

phi-3-tiny comes with phi3-serve, so the first request gets an answer without a download. It has the architecture, the
chat template and the control tokens of Microsoft's Phi-3, but none of its weights. It was trained from scratch on
dialogues that a program wrote. `make serve` serves it.

| | |
|---|---|
| parameters | {num_parameters:,} in bfloat16: {NUM_LAYERS} layers, width {HIDDEN_SIZE}, {NUM_HEADS} heads, untied embeddings |
| context | {CONTEXT_LENGTH:,} tokens; conversations in the training have up to about 370 |
| data | {dialogues:,} dialogues drawn from `training/lessons`: the facts are common knowledge, the sentences were written for the lessons |
| training | on two CPU cores: {_in_words(trained)} |
| train again | `python -m training.train` (with the extra `train`); `training/LOG.md` describes how it was made |

![The loss over the tokens seen]({LOSS_PLOT})

## What it can do
`python -m training.exam` asks {QUESTIONS_PER_KIND} questions of each kind and decodes greedily. The questions are held
out: a hash excludes a sixth of the numbers, words and names and a sixth of the wordings from the lessons of a kind.

- The plainest wordings are always taught. For "backwards?" after a spelling, for example, only the words are new.
- A held-out wording consists of phrases that other wordings teach.
- A word may be held out from spelling and still occur in reversing.
- Facts, such as the capital of a country, are taught; only the wording of the question is new.

An answer is right if it is exactly the expected text. A list is right if it has the requested number of different things
of the category. Small talk and refusals are right if the answer is one of the taught answers.

| kind | right | goal |
|---|---|---|
{chr(10).join(_row(mark) for mark in marks)}

{sum(mark.passed for mark in goals)} of {len(goals)} goals are reached.

Sums, differences and comparisons go to three digits. Products go to 12 × 12 and 99 × 9. Quotients go to 12 with divisors
to 12. Ordering takes up to five numbers below a hundred.

## What it says
Greedy answers, unedited, from `POST /chat` with `"generate_kwargs": {{"do_sample": false, "max_new_tokens": {LONGEST_ANSWER}}}`.

| asked | answered |
|---|---|
{chr(10).join(f"| {question} | {answer} |" for question, answer in asked)}

## What it cannot do
Nearly everything else. It knows about 2,000 words, about 90 capitals and 130 definitions. It knows nothing about news, code or
people. Often it says that a question is beyond it. It can also be confidently wrong, more often in long conversations, at
a high temperature, and in languages other than English. It is a demonstration and a test object; do not rely on it.
"""


def _row(mark: Mark) -> str:
    goal = "" if mark.goal is None else f"{mark.goal:.0%}"
    return f"| {mark.kind} | {mark.share:.1%} | {goal} |"
