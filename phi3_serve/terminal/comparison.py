"""``phi3-serve compare``: one question under several settings or models, and the answers side by side."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from phi3_serve.bar_chart import Bar, Panel, drawn
from phi3_serve.client import Client
from phi3_serve.errors import Phi3ServeError
from phi3_serve.terminal.answer import Answer
from phi3_serve.terminal.comparison_table import print_side_by_side
from phi3_serve.terminal.contestant import Contestant
from phi3_serve.terminal.conversation import Conversation
from phi3_serve.terminal.exit_codes import INTERRUPTED, USAGE, UsageError, exit_code_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    url: str
    api_key: str | None
    question: str
    models: Sequence[str]  # none: all that are ready, or the first of them if there are several settings
    settings: Sequence[str]  # of one column each: NAME=VALUE, with spaces between several
    system: str | None
    as_json: bool
    svg: Path | None  # the file of the bars


def compare(options: Options) -> int:
    """Ask each model under each of the settings, one after another. Returns the exit code.

    A contestant that fails has its error in its column, and the others go on.
    """
    console = Console(stderr=True, highlight=False)
    try:
        client = Client(options.url, options.api_key)
        contestants = _contestants(client, options)
        for number, contestant in enumerate(contestants, 1):
            of_all = f"{number} of {len(contestants)}: {contestant.model}, {contestant.settings_in_words}"
            with console.status(escape(of_all), spinner="dots"):
                _ask(client, options, contestant, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Phi3ServeError as error:
        console.print(error.message, style="red", markup=False, soft_wrap=True)
        return USAGE if isinstance(error, UsageError) else exit_code_of(error)
    if options.svg is not None:
        options.svg.write_text(drawn(panels(contestants), f"phi3-serve compare {shlex.quote(options.question)}"))
    if options.as_json:
        print(json.dumps([one.as_json() for one in contestants], indent=2))
    else:
        print_side_by_side(contestants)
    return max((exit_code_of(one.error) for one in contestants if one.error is not None), default=0)


def _contestants(client: Client, options: Options) -> list[Contestant]:
    """Each model with each of the settings.

    Raises:
        UsageError: the settings cannot be read, or there is nothing to compare.
        Phi3ServeError: the server does not answer, or has no such model.
    """
    settings = [_settings(given) for given in options.settings] or [{}]
    if options.models:
        models = [client.model_id(name) for name in options.models]
    else:
        ready = [str(model["id"]) for model in client.get("/v1/models")["data"] if model["state"] == "ready"]
        models = ready if len(settings) < 2 else ready[:1]
    contestants = [Contestant(model, of_one) for model, of_one in product(models, settings)]
    if len(contestants) < 2:
        raise UsageError(
            "There is nothing to compare: give --with twice, for example --with temperature=0 --with temperature=1, "
            "or --model twice."
        )
    return contestants


def _settings(given: str) -> dict[str, Any]:
    """The generate parameters of one column."""
    conversation = Conversation(model="")
    try:
        for setting in shlex.split(given):
            name, equals, value = setting.partition("=")
            if not equals:
                raise UsageError(f"--with {given}: {setting} must be NAME=VALUE, for example temperature=0.3.")
            conversation.set(name, value)
    except UsageError:
        raise
    except (Phi3ServeError, ValueError) as error:
        raise UsageError(f"--with {given}: {error}") from None
    return conversation.parameters


def _ask(client: Client, options: Options, contestant: Contestant, console: Console) -> None:
    """Wait for the answer, or the error, of ``contestant``."""
    conversation = Conversation(contestant.model, options.system, dict(contestant.settings))
    conversation.messages.append({"role": "user", "content": options.question})
    body = conversation.body()
    if contestant.settings.get("num_beams", 1) == 1:
        body["logprobs"] = True  # not offered with beam search
    contestant.answer = Answer(client, body, lambda why: console.print(why, style="dim", markup=False))
    try:
        for _ in contestant.answer.pieces():
            pass
    except Phi3ServeError as error:
        contestant.error = error


def panels(contestants: Sequence[Contestant]) -> list[Panel]:
    """Bars of what can be measured, for those who have answered."""
    answered = [(f"{one.model}, {one.settings_in_words}", one.as_json()) for one in contestants if one.error is None]

    def panel(title: str, key: str, factor: float = 1.0, full_scale: float | None = None) -> Panel:
        bars = (Bar(label, factor * found[key]) for label, found in answered if found[key] is not None)
        return Panel(title, tuple(bars), full_scale)

    return [
        panel("Tokens of the answer", "tokens"),
        panel("First token, milliseconds", "first_token_s", 1000),
        panel("Tokens per second", "tokens_per_s"),
        panel("Probability of a token, geometric mean, %", "token_probability", 100, 100),
    ]
