"""Answers side by side in a terminal; one below another where columns would be too narrow to read."""

import sys
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from phi3_serve.terminal.contestant import Contestant

MIN_COLUMN_WIDTH = 28  # characters
WIDTH_OF_PIPE = 120  # characters; a pipe has no width


def print_side_by_side(contestants: Sequence[Contestant]) -> None:
    """Print the answers, and below them the figures of each."""
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console.width = WIDTH_OF_PIPE
    if console.width >= MIN_COLUMN_WIDTH * len(contestants):
        console.print(_columns(contestants))
        return
    for contestant in contestants:
        console.print(Rule(f"{escape(contestant.model)}, {escape(contestant.settings_in_words)}", align="left"))
        console.print(Text(contestant.text))
    console.print(Rule())
    console.print(_figures(contestants))


def _columns(contestants: Sequence[Contestant]) -> Table:
    """A column for each contestant."""
    table = Table(expand=True, title_justify="left")
    for contestant in contestants:
        heading = f"[bold]{escape(contestant.model)}[/]\n[dim]{escape(contestant.settings_in_words)}[/]"
        table.add_column(heading, ratio=1, overflow="fold")
    table.add_row(*(Text(one.text, style="red" if one.error else "") for one in contestants))
    table.add_section()
    table.add_row(*("\n".join(_lines(one)) for one in contestants))
    return table


def _lines(contestant: Contestant) -> Iterator[str]:
    for name, value in _FIGURES.items():
        if (shown := value(contestant)) is not None:
            yield f"[dim]{name}[/] {shown}"


def _figures(contestants: Sequence[Contestant]) -> Table:
    """A row for each contestant."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in _FIGURES:
        table.add_column(name, justify="right", overflow="fold")
    for one in contestants:
        cells = (value(one) or "" for value in _FIGURES.values())
        table.add_row(escape(f"{one.model} {one.settings_in_words}"), *cells)
    return table


def _tokens(one: Contestant) -> str | None:
    return None if one.answer is None else str(one.answer.tokens)


def _first_token(one: Contestant) -> str | None:
    first_after_s = None if one.answer is None else one.answer.first_after_s
    return None if first_after_s is None else f"{1000 * first_after_s:.0f} ms"


def _tokens_per_s(one: Contestant) -> str | None:
    return None if one.tokens_per_s is None else f"{one.tokens_per_s:.0f}"


def _probability(one: Contestant) -> str | None:
    return None if one.token_probability is None else f"{100 * one.token_probability:.0f} %"


_FIGURES: dict[str, Callable[[Contestant], str | None]] = {
    "Tokens": _tokens,
    "First token": _first_token,
    "Tokens/s": _tokens_per_s,
    "Probability of a token": _probability,
    "Ended": lambda one: one.end,
}
