"""The prompt of an interactive conversation, over prompt_toolkit.

Enter sends. Alt-Enter begins a new line. A pasted text stays one message, because the terminal marks pasted text
(bracketed paste). As in ollama, a text that begins with three quotes goes on until three quotes end it.
"""

import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.defaults import create_output

from phi3_serve.parameters import NAMES

PROMPT = "> "
CONTINUATION = ". "
_QUOTED = re.compile(r'(?P<command>/\w+\s+)?"""(?P<text>.*)', re.DOTALL)
_END = '"""'


class LineEditor:
    """Reads messages and commands, with the history of earlier ones in the file ``history``."""

    def __init__(self, history: Path, commands: Iterable[str]) -> None:
        """``commands``: their names, with the ``/``."""
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=CONTINUATION,
            key_bindings=_key_bindings(),
            history=_history(history),
            completer=_Completer(commands),
            complete_while_typing=False,
            output=create_output(always_prefer_tty=True),  # the answers may go to a file
        )

    def texts(self) -> Iterator[str]:
        """What is typed, until Ctrl-D. Ctrl-C clears what is not sent."""
        while True:
            with suppress(KeyboardInterrupt):
                try:
                    text = self._session.prompt()
                except EOFError:
                    return
                yield unquoted(text)


def is_complete(text: str) -> bool:
    """Whether Enter sends ``text``: it has no three quotes at its beginning, or also others at its end."""
    quoted = _QUOTED.fullmatch(text)
    return quoted is None or quoted["text"].rstrip().endswith(_END)


def unquoted(text: str) -> str:
    """``text`` without the three quotes around it."""
    quoted = _QUOTED.fullmatch(text)
    if quoted is None:
        return text
    return (quoted["command"] or "") + quoted["text"].rstrip().removesuffix(_END).strip("\n")


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        if is_complete(event.current_buffer.text):
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.newline(copy_margin=False)

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


def _history(path: Path) -> History:
    """That of the file, which only this user can read; only in memory if it cannot be written."""
    try:
        path.parent.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        path.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
        path.open("ab").close()
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


class _Completer(Completer):
    """Completes the names of commands, and of parameters after /set."""

    def __init__(self, commands: Iterable[str]) -> None:
        self._commands = sorted(commands)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        typed = text.removeprefix("/set ")
        if " " in typed or not text.startswith("/"):
            return
        for name in self._commands if typed == text else sorted(NAMES):
            if name.startswith(typed):
                yield Completion(name, start_position=-len(typed))
