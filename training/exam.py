"""The exam: held-out questions, answered greedily by the engine.

``python -m training.exam`` examines the embedded checkpoint and prints the share of right answers for each kind.
"""

import json
import queue
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from phi3_serve.catalogue import EMBEDDED_TINY, NO_QUANTIZATION
from phi3_serve.core.engine_event import EngineEvent, Finished
from phi3_serve.core.engine_info import QueueLimits
from phi3_serve.core.engine_request import EngineRequest
from phi3_serve.core.event import Failed
from phi3_serve.core.prompt import Conversation, Message
from phi3_serve.engine.engine import Engine
from phi3_serve.engine.kernels.kv_cache import KvCacheDtype
from phi3_serve.engine.memory import FittingSizes
from phi3_serve.parameters import GenerationParameters
from phi3_serve.prepare import prepare
from phi3_serve.resolved_parameters import resolve
from phi3_serve.text.tokenizer import Phi3Tokenizer
from training.curriculum import LESSONS
from training.dialogue import Dialogue, Draw
from training.modules import load_on_cpu

SEED = 2026
QUESTIONS_PER_KIND = 300
LONGEST_ANSWER = 300  # tokens
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Mark:
    """The result of one kind of question. ``goal`` is None for an open kind."""

    kind: str
    questions: int
    right: int
    goal: float | None
    mistakes: tuple[tuple[str, str], ...]  # question, answer

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.questions

    @property
    def passed(self) -> bool:
        """Whether the goal is reached. An open kind has no goal and always passes."""
        return self.goal is None or self.share >= self.goal


class Examinee:
    """A checkpoint on the CPU that answers greedily."""

    def __init__(
        self, directory: Path, quantization: str = NO_QUANTIZATION, kv_cache_dtype: KvCacheDtype = "auto"
    ) -> None:
        self._loaded = load_on_cpu("phi-3-tiny", directory, dtype="float32", quantization=quantization)
        self._tokenizer = Phi3Tokenizer(self._loaded.tokenizer)
        self._engine = Engine(
            self._loaded,
            queue=QueueLimits(requests=1 << 20, tokens=1 << 40),
            sizes=FittingSizes(kv_cache_dtype=kv_cache_dtype),
        )

    def answers(self, conversations: Sequence[Sequence[Message]]) -> list[str]:
        """The next answer in each conversation. An answer that reaches the length limit is marked as cut off."""
        finished: queue.Queue[tuple[int, EngineEvent]] = queue.Queue()
        for number, messages in enumerate(conversations):
            self._engine.submit(self._request(number, messages), lambda e, n=number: finished.put((n, e)))  # type: ignore[misc]
        answers = [""] * len(conversations)
        for _ in conversations:
            number, event = finished.get(timeout=_TIMEOUT_S)
            answers[number] = self._text(event)
        return answers

    def close(self) -> None:
        """Stop the engine's thread."""
        self._engine.close()

    def _request(self, number: int, messages: Sequence[Message]) -> EngineRequest:
        given = GenerationParameters(do_sample=False, max_new_tokens=LONGEST_ANSWER)
        return prepare(
            str(number),
            self._tokenizer.encode(Conversation(tuple(messages))),
            resolve(given, self._loaded.defaults),
            context_length=self._loaded.context_length,
            timeout_s=_TIMEOUT_S,
        )

    def _text(self, event: EngineEvent) -> str:
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Finished)  # noqa: S101 (no request streams)
        sequence = event.sequences[0]
        text = self._tokenizer.decode(sequence.token_ids)
        return text if sequence.finish_reason == "stop" else f"{text} [cut off]"


def examine(examinee: Examinee, questions_per_kind: int = QUESTIONS_PER_KIND, seed: int = SEED) -> Iterator[Mark]:
    """The mark of each kind."""
    draw = Draw(Random(seed), exam=True)  # noqa: S311 (not a secret)
    for lesson in LESSONS:
        asked: list[Dialogue] = [lesson.dialogue(draw) for _ in range(questions_per_kind)]
        answers = examinee.answers([d.turns[:-1] for d in asked])
        wrong = [(d.turns[-2].content, a) for d, a in zip(asked, answers, strict=True) if not d.last.is_right(a)]
        yield Mark(lesson.kind, len(asked), len(asked) - len(wrong), lesson.goal, tuple(wrong))


def as_table(marks: Sequence[Mark], *, mistakes: int = 0) -> Table:
    """The marks, with the first ``mistakes`` mistakes of each kind."""
    table = Table("kind", "right", "goal", *(["mistakes"] if mistakes else []))
    for mark in marks:
        goal = "" if mark.goal is None else f"{mark.goal:.0%}"
        shown = "\n".join(f"{question!r}: {answer!r}" for question, answer in mark.mistakes[:mistakes])
        colour = "" if mark.passed else "[red]"
        table.add_row(mark.kind, f"{colour}{mark.share:.1%}", goal, *([shown] if mistakes else []))
    return table


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of phi-3-tiny.")] = EMBEDDED_TINY,
    questions: Annotated[int, typer.Option(help="Questions of each kind.", min=1)] = QUESTIONS_PER_KIND,
    mistakes: Annotated[int, typer.Option(help="Mistakes of each kind to show.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Examine phi-3-tiny on held-out questions. The exit status is 1 if a goal is missed."""
    examinee = Examinee(checkpoint)
    console = Console(stderr=True)
    marks = list(track(examine(examinee, questions), "Examining", total=len(LESSONS), console=console))
    examinee.close()
    if as_json:
        print(json.dumps([asdict(mark) for mark in marks], indent=1, ensure_ascii=False))
    else:
        Console().print(as_table(marks, mistakes=mistakes))
    raise typer.Exit(not all(mark.passed for mark in marks))


if __name__ == "__main__":
    typer.run(main)
