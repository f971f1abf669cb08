"""``phi3-serve chat``: a conversation in the terminal.

On a terminal it asks with a prompt, remembers what was typed, and Ctrl-C stops an answer without leaving. From a pipe
each line is a message.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rich.console import Console

from phi3_serve.client import Client, Refused
from phi3_serve.errors import Phi3ServeError, did_you_mean
from phi3_serve.parameters import NAMES

HISTORY = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "phi3-serve" / "chat_history"
_LONGEST_WAIT_S = 10.0


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the settings of the next request."""

    model: str
    system: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # generate parameters by name
    messages: list[dict[str, str]] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """The request for the next answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {
            "model": self.model,
            "messages": [*system, *self.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "generate_kwargs": self.parameters,
        }


class Terminal:
    """Reads messages and commands until the input ends."""

    def __init__(self, client: Client, conversation: Conversation) -> None:
        self._client = client
        self._conversation = conversation
        self._console = Console(highlight=False)
        self._commands = _commands(self)

    def run(self) -> None:
        """Run until the input ends, or /quit."""
        is_interactive = sys.stdin.isatty()
        if is_interactive:
            self._console.print(f"{self._conversation.model} at {self._client.url}. /help lists the commands.")
        for line in _typed() if is_interactive else (line.rstrip("\n") for line in sys.stdin):
            with suppress(KeyboardInterrupt):
                if not self._take(line.strip()):
                    return

    def _take(self, line: str) -> bool:
        """Run the message or command in ``line``. Returns False to quit."""
        if line in ("/quit", "/exit"):
            return False
        try:
            if line.startswith("/"):
                self._command(*line[1:].split(maxsplit=1))
            elif line:
                self._say(line)
        except Phi3ServeError as error:
            self._console.print(error.message, style="red", markup=False)
        return True

    def _command(self, name: str = "", rest: str = "") -> None:
        if name not in self._commands:
            commands = [f"/{command}" for command in self._commands]
            hint = did_you_mean(f"/{name}", commands, "; /help lists the commands.", quote="")
            raise Phi3ServeError(f"/{name} is not a command{hint}")
        self._commands[name].do(rest.strip())

    def _say(self, text: str) -> None:
        messages = self._conversation.messages
        messages.append({"role": "user", "content": text})
        answer = ""
        try:
            for piece in self._answer():
                answer += piece
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            self._console.print(" (stopped)", style="dim")
        finally:
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()  # a message without an answer is not part of the conversation

    def _answer(self) -> Iterator[str]:
        """The pieces of the next answer; waits until the model is ready."""
        began, first, tokens = time.monotonic(), None, 0
        for event in self._events():
            if "error" in event:
                raise Phi3ServeError(event["error"]["message"])
            piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if piece:
                first = first or time.monotonic()
                yield piece
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        sys.stdout.write("\n")
        if first is not None and sys.stdout.isatty():
            speed = tokens / (time.monotonic() - began)
            self._console.print(
                f"{tokens} tokens, {speed:.0f}/s, first after {1000 * (first - began):.0f} ms", style="dim"
            )

    def _events(self) -> Iterator[Any]:
        """The server's events, with a spinner while the model loads."""
        with Console(stderr=True).status("") as status:
            while True:
                events = self._client.stream("/v1/chat/completions", self._conversation.body())
                try:
                    first = next(events)
                    break
                except Refused as refused:
                    if refused.status != HTTPStatus.SERVICE_UNAVAILABLE or refused.retry_after_s is None:
                        raise
                    status.update(f"{refused} (Ctrl-C gives up)")
                    time.sleep(min(refused.retry_after_s, _LONGEST_WAIT_S))
        yield first
        yield from events

    def help(self, _: str) -> None:
        """List the commands."""
        for name, command in self._commands.items():
            self._console.print(f"/{name} {command.takes}".ljust(28) + command.meaning, markup=False)
        self._console.print("/quit".ljust(28) + "leave; so does Ctrl-D. Ctrl-C stops an answer.")

    def set(self, given: str) -> None:
        """Set a generate parameter."""
        name, _, value = given.partition(" ")
        if name not in NAMES:
            raise Phi3ServeError(f"`{name}` is not a generate parameter{did_you_mean(name, NAMES)}")
        if not value:
            self._conversation.parameters.pop(name, None)
            return
        try:
            self._conversation.parameters[name] = json.loads(value)
        except ValueError:
            self._conversation.parameters[name] = value  # a text without quotes

    def show(self, _: str) -> None:
        """Show the settings."""
        settings = {f.name: getattr(self._conversation, f.name) for f in fields(Conversation) if f.name != "messages"}
        for name, value in settings.items():
            self._console.print(f"{name}: {json.dumps(value)}", markup=False)
        self._console.print(f"messages: {len(self._conversation.messages)}")

    def models(self, _: str) -> None:
        """List the served models."""
        for model in self._client.get("/v1/models")["data"]:
            mark = "*" if model["id"] == self._conversation.model else " "
            self._console.print(f"{mark} {model['id'].ljust(28)} {model['state']}", markup=False)

    def model(self, name: str) -> None:
        """Change the model."""
        self._conversation.model = self._client.get(f"/v1/models/{name}")["id"]

    def system(self, text: str) -> None:
        """Set the system prompt."""
        self._conversation.system = text or None

    def new(self, _: str) -> None:
        """Clear the conversation."""
        self._conversation.messages.clear()

    def retry(self, _: str) -> None:
        """Repeat the last message."""
        said = self._conversation.messages
        while said and said[-1]["role"] == "assistant":
            said.pop()
        if not said:
            raise Phi3ServeError("Nothing has been said yet.")
        self._say(said.pop()["content"])


@dataclass(frozen=True, slots=True)
class Command:
    """Complete the names of commands and parameters."""

    do: Callable[[str], None]
    takes: str
    meaning: str


def _commands(terminal: Terminal) -> dict[str, Command]:
    return {
        "set": Command(
            terminal.set, "NAME [VALUE]", "a generate parameter: /set temperature 0.3; without a value unset"
        ),
        "system": Command(terminal.system, "[TEXT]", "the system prompt; without a text none"),
        "model": Command(terminal.model, "NAME", "ask another model from now on"),
        "models": Command(terminal.models, "", "the served models and how they stand"),
        "retry": Command(terminal.retry, "", "another answer to the last message"),
        "new": Command(terminal.new, "", "a new conversation"),
        "show": Command(terminal.show, "", "model, system prompt and parameters"),
        "help": Command(terminal.help, "", "this list"),
    }


def _typed() -> Iterator[str]:
    """Lines typed at a prompt, with the history of earlier ones; Ctrl-C clears the line, Ctrl-D ends."""
    import readline  # its import gives input() editing and history

    with suppress(OSError):
        readline.read_history_file(HISTORY)
    readline.set_history_length(1000)
    try:
        while True:
            try:
                yield input("> ")
            except KeyboardInterrupt:
                print()
            except EOFError:
                print()
                return
    finally:
        with suppress(OSError):
            HISTORY.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(HISTORY)


def chat(
    url: str, model: str | None, system: str | None, parameters: dict[str, Any], api_key: str | None = None
) -> None:
    """Talk to ``model`` at ``url``, or to the first model that is ready there.

    Raises:
        Phi3ServeError: the server cannot be reached, or does not serve the model.
    """
    client = Client(url, api_key)
    if model is None:
        served = client.get("/v1/models")["data"]
        model = next((m["id"] for m in served if m["state"] == "ready"), served[0]["id"])
    else:
        model = client.get(f"/v1/models/{model}")["id"]
    Terminal(client, Conversation(str(model), system, parameters)).run()
