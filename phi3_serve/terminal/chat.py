"""``phi3-serve chat``: one question, the lines of a pipe, or a conversation at a prompt."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from phi3_serve.client import Client
from phi3_serve.errors import Phi3ServeError
from phi3_serve.terminal.answer_printer import AnswerPrinter
from phi3_serve.terminal.commands import QUIT, Commands
from phi3_serve.terminal.conversation import Conversation
from phi3_serve.terminal.exit_codes import INTERRUPTED, USAGE, UsageError, exit_code_of
from phi3_serve.terminal.saved_conversations import SavedConversations
from phi3_serve.terminal.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    url: str
    api_key: str | None
    question: str | None
    model: str | None  # None: the first that is ready
    system: str | None
    settings: list[str] = field(default_factory=list)  # NAME=VALUE of generate parameters
    by_line: bool  # each line of standard input is a message or a command
    is_verbose: bool


def chat(options: Options) -> int:
    """Talk to a running server. Returns the exit code, after a message on standard error if it is not 0."""
    try:
        return _chat(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Phi3ServeError as error:
        _print_error(error)
        return USAGE if isinstance(error, UsageError) else exit_code_of(error)


def _chat(options: Options) -> int:
    question = None if options.by_line else _question(options.question)
    session = _session(options)
    if question is not None:
        session.say(question)
        return 0
    commands = Commands(
        session,
        SavedConversations(_directory("XDG_DATA_HOME", "~/.local/share") / "conversations"),
        Console(highlight=False),
    )
    if options.by_line:
        return _run(session, commands, _lines())
    from phi3_serve.terminal.line_editor import LineEditor  # prompt_toolkit takes a tenth of a second to import

    history = _directory("XDG_STATE_HOME", "~/.local/state") / "chat_history"
    console = Console(stderr=True, highlight=False)
    console.print(f"{session.conversation.model} at {session.client.url}. /help lists the commands.", markup=False)
    _run(session, commands, LineEditor(history, commands.names).texts(), is_interactive=True)
    return 0


def _directory(variable: str, default: str) -> Path:
    """That of our files in a directory of the XDG Base Directory Specification."""
    return Path(os.environ.get(variable) or default).expanduser() / "phi3-serve"


def _question(words: str | None) -> str | None:
    """The one question: what comes from a pipe, then the command line's. None: a conversation is typed.

    Raises:
        UsageError: there is nothing to ask, or the pipe has no text.
    """
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    if is_typed and words is None:
        return None
    piped = "" if is_typed else _piped()
    question = "\n\n".join(part for part in (piped, words or "") if part.strip())
    if not question:
        raise UsageError("There is no question: neither the command line nor standard input has one.")
    return question


def _piped() -> str:
    if sys.stdin is None:  # closed
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from None


def _lines() -> Iterator[str]:
    for line in sys.stdin.buffer if sys.stdin is not None else ():
        yield line.decode("utf-8", errors="replace").strip()


def _session(options: Options) -> Session:
    client = Client(options.url, options.api_key)
    conversation = Conversation(model="", system=options.system)
    for setting in options.settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: must be NAME=VALUE, for example temperature=0.3.")
        try:
            conversation.set(name, value)
        except Phi3ServeError as error:
            raise UsageError(f"--set {setting}: {error.message}") from None
    conversation.model = _model(client, options.model)
    return Session(client, conversation, AnswerPrinter(is_verbose=options.is_verbose))


def _model(client: Client, asked: str | None) -> str:
    if asked is not None:
        return client.model_id(asked)
    served = client.get("/v1/models")["data"]
    return str(next((m["id"] for m in served if m["state"] == "ready"), served[0]["id"]))


def _run(session: Session, commands: Commands, texts: Iterable[str], *, is_interactive: bool = False) -> int:
    """Answer ``texts`` until they end, or one of them is /quit. Returns the exit code of the last that failed.

    Ctrl-C stops an answer; without a user at a prompt it ends the command.
    """
    code = 0
    for text in texts:
        if text.strip() in QUIT:
            break
        try:
            if text.strip() and not commands.take(text.strip()):
                session.say(text)
        except KeyboardInterrupt:
            if not is_interactive:
                raise
            with suppress(KeyboardInterrupt):
                Console(stderr=True).print("(stopped)", style="dim")
        except Phi3ServeError as error:
            _print_error(error)
            code = exit_code_of(error)
    return code


def _print_error(error: Phi3ServeError) -> None:
    Console(stderr=True, highlight=False).print(error.message, style="red", markup=False, soft_wrap=True)
