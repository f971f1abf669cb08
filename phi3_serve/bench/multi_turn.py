"""``phi3-serve bench turns``: conversations that go on, over one long system prompt each.

What a server has read of a conversation it need not read again, if the next turn comes to the replica that has it in
memory: this is what ``routing: prefix`` is for.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from phi3_serve.client import Client

WORDS = ("castle", "king", "river", "bread", "stone", "forest", "winter", "letter", "music", "garden", "bridge")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure."""

    url: str
    model: str
    conversations: int  # at once
    turns: int
    words: int  # of each system prompt
    new_tokens: int  # of each answer, at most
    rounds: int
    seed: int  # of what is said


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: seconds until its first text, and until its end."""

    number: int
    first_s: float
    all_s: float


def run(settings: Settings, *, as_json: bool) -> None:
    """Measure, and print a table, or JSON, on stdout.

    Raises:
        Phi3ServeError: the server cannot be reached, or refuses the conversation.
    """
    began, turns = time.perf_counter(), []
    for number in track(range(settings.rounds), "Talking", console=Console(stderr=True)):
        with ThreadPoolExecutor(settings.conversations) as pool:
            rngs = [Random(f"{settings.seed}/{number}/{index}") for index in range(settings.conversations)]  # noqa: S311 (no secret)
            talks = pool.map(partial(_talk, settings), rngs)
            turns += [turn for talk in talks for turn in talk]
    seconds = time.perf_counter() - began
    if as_json:
        print(json.dumps({"settings": asdict(settings), "seconds": seconds, "turns": [asdict(turn) for turn in turns]}))
    else:
        Console(width=None if sys.stdout.isatty() else 100).print(_table(settings, turns, seconds))


def _talk(settings: Settings, rng: Random) -> list[Turn]:
    system = " ".join(rng.choice(WORDS) for _ in range(settings.words))
    messages = [{"role": "system", "content": system}]
    turns = []
    for number in range(settings.turns):
        messages.append({"role": "user", "content": f"And what about the {rng.choice(WORDS)}?"})
        turn, said = _ask(settings, messages, number)
        turns.append(turn)
        messages.append({"role": "assistant", "content": said})
    return turns


def _ask(settings: Settings, messages: Sequence[dict[str, str]], number: int) -> tuple[Turn, str]:
    kwargs = {"do_sample": False, "max_new_tokens": settings.new_tokens}
    body: dict[str, Any] = {"model": settings.model, "messages": messages, "stream": True, "generate_kwargs": kwargs}
    began, first, said = time.perf_counter(), None, ""
    for event in Client(settings.url).stream("/chat", body):
        if first is None and event.get("Delta"):
            first = time.perf_counter() - began
        said = event.get("Result", said)
    seconds = time.perf_counter() - began
    return Turn(number, seconds if first is None else first, seconds), said or "."


def _table(settings: Settings, turns: Sequence[Turn], seconds: float) -> Table:
    table = Table(
        "turn", "first text after, ms", "whole answer after, ms", title=f"{len(turns)} answers in {seconds:.1f} s"
    )
    for number in range(settings.turns):
        of_turn = [turn for turn in turns if turn.number == number]
        first, whole = (
            1000 * statistics.median(seconds)
            for seconds in zip(*((turn.first_s, turn.all_s) for turn in of_turn), strict=True)
        )
        table.add_row(str(number + 1), f"{first:.0f}", f"{whole:.0f}")
    return table
