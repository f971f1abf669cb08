"""``phi3-serve bench multi-turn``: conversations of several turns, each with a long system prompt.

A replica that has the previous turn in memory computes only the new tokens. The benchmark shows the gain of
``routing: prefix``, which sends each turn to that replica.
"""

import statistics
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

from phi3_serve.bench import plots
from phi3_serve.bench.output import Output
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
    seed: int  # of the conversations


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer: seconds until its first text, and until its end."""

    number: int
    first_s: float
    all_s: float


def run(settings: Settings, client: Client, output: Output) -> None:
    """Measure, and show the figures.

    Raises:
        Phi3ServeError: the server cannot be reached or refuses the conversation.
    """
    started, turns = time.perf_counter(), []
    for number in track(range(settings.rounds), "Conversations", console=Console(stderr=True)):
        with ThreadPoolExecutor(settings.conversations) as pool:
            rngs = [Random(f"{settings.seed}/{number}/{index}") for index in range(settings.conversations)]  # noqa: S311 (no secret)
            conversations = pool.map(partial(_hold_conversation, settings, client), rngs)
            turns += [turn for conversation in conversations for turn in conversation]
    seconds = time.perf_counter() - started
    report = {"settings": asdict(settings), "seconds": seconds, "turns": [asdict(turn) for turn in turns]}
    output.show(report, plots.multi_turn, partial(_table, settings, turns, seconds), width=100)


def _hold_conversation(settings: Settings, client: Client, rng: Random) -> list[Turn]:
    system = " ".join(rng.choice(WORDS) for _ in range(settings.words))
    messages = [{"role": "system", "content": system}]
    turns = []
    for number in range(settings.turns):
        messages.append({"role": "user", "content": f"And what about the {rng.choice(WORDS)}?"})
        turn, answer = _ask(settings, client, messages, number)
        turns.append(turn)
        messages.append({"role": "assistant", "content": answer})
    return turns


def _ask(settings: Settings, client: Client, messages: Sequence[dict[str, str]], number: int) -> tuple[Turn, str]:
    kwargs = {"do_sample": False, "max_new_tokens": settings.new_tokens}
    body: dict[str, Any] = {"model": settings.model, "messages": messages, "stream": True, "generate_kwargs": kwargs}
    started, first, answer = time.perf_counter(), None, ""
    for event in client.stream("/chat", body):
        if first is None and event.get("Delta"):
            first = time.perf_counter() - started
        answer = event.get("Result", answer)
    seconds = time.perf_counter() - started
    return Turn(number, seconds if first is None else first, seconds), answer or "."


def _table(settings: Settings, turns: Sequence[Turn], seconds: float) -> Table:
    table = Table("turn", "first text, ms", "whole answer, ms", title=f"{len(turns)} answers in {seconds:.1f} s")
    for number in range(settings.turns):
        of_turn = [turn for turn in turns if turn.number == number]
        first, whole = (
            1000 * statistics.median(seconds)
            for seconds in zip(*((turn.first_s, turn.all_s) for turn in of_turn), strict=True)
        )
        table.add_row(str(number + 1), f"{first:.0f}", f"{whole:.0f}")
    return table
