"""The commands of a conversation: what begins with a ``/``."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from phi3_serve.client import Refused
from phi3_serve.errors import Phi3ServeError, did_you_mean
from phi3_serve.terminal.conversation import Conversation
from phi3_serve.terminal.saved_conversations import SavedConversations
from phi3_serve.terminal.session import Session

QUIT = ("/quit", "/exit", "/bye")
_COMMAND = re.compile(r"/(\w*)(?:\s+(.*))?", re.DOTALL)  # `/etc/hosts: what is it?` is a message


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it does with the rest of its line, and its line of help."""

    do: Callable[[str], None]
    takes: str
    meaning: str


class Commands:
    """The commands on one session. They print to ``console``."""

    def __init__(self, session: Session, saved: SavedConversations, console: Console) -> None:
        self._session = session
        self._saved = saved
        self._console = console
        self._by_name = {
            "set": Command(self._set, "NAME [VALUE]", "a generate parameter: /set temperature 0.3; no value: unset"),
            "system": Command(self._set_system, "[TEXT]", "the system prompt; without a text none"),
            "model": Command(self._set_model, "NAME", "ask another model from now on"),
            "models": Command(self._list_models, "", "the served models and their states"),
            "retry": Command(self._retry, "", "another answer to the last message"),
            "new": Command(self._clear, "", "a new conversation"),
            "save": Command(self._save, "NAME", "save the conversation; a NAME with a / is a path"),
            "load": Command(self._load, "[NAME]", "go on with a saved conversation; without a name list them"),
            "show": Command(self._show, "", "model, system prompt and parameters"),
            "verbose": Command(self._toggle_verbose, "", "show tokens per second after each answer, or no longer"),
            "help": Command(self._help, "", "this list"),
        }

    @property
    def names(self) -> list[str]:
        """All names, with the ``/``."""
        return [*(f"/{name}" for name in self._by_name), *QUIT]

    def take(self, text: str) -> bool:
        """Run ``text`` if it is a command. False: it is a message.

        Raises:
            Phi3ServeError: there is no such command, or it has failed.
        """
        found = _COMMAND.fullmatch(text)
        if found is None:
            return False
        name, rest = found[1], (found[2] or "").strip()
        if name not in self._by_name:
            hint = did_you_mean(f"/{name}", self.names, "; /help lists the commands.", quote="")
            raise Phi3ServeError(f"/{name} is not a command{hint}")
        self._by_name[name].do(rest)
        return True

    @property
    def _conversation(self) -> Conversation:
        return self._session.conversation

    def _set(self, given: str) -> None:
        name, _, value = given.partition(" ")
        if value:
            self._conversation.set(name, value.strip())
        else:
            self._conversation.unset(name)

    def _set_system(self, text: str) -> None:
        self._conversation.system = text or None

    def _set_model(self, name: str) -> None:
        if not name:
            raise Phi3ServeError("/model needs the NAME of a model; /models lists them.")
        self._conversation.model = self._session.client.model_id(name)

    def _list_models(self, _: str) -> None:
        for model in self._session.client.get("/v1/models")["data"]:
            mark = "*" if model["id"] == self._conversation.model else " "
            self._print(f"{mark} {model['id'].ljust(28)} {model['state']}")

    def _retry(self, _: str) -> None:
        self._session.say_again()

    def _clear(self, _: str) -> None:
        self._conversation.messages.clear()

    def _save(self, name: str) -> None:
        self._print(f"saved: {self._saved.save(name, self._conversation.as_request())}")

    def _load(self, name: str) -> None:
        if not name:
            self._print("\n".join(self._saved.names()) or "no conversation is saved")
            return
        model = self._conversation.model
        self._conversation.replace_by(self._saved.load(name))
        try:
            self._set_model(self._conversation.model)
        except Refused:
            self._print(f"{self._conversation.model} is not served here; {model} is asked instead")
            self._conversation.model = model
        self._show("")

    def _show(self, _: str) -> None:
        conversation = self._conversation
        self._print(f"model: {json.dumps(conversation.model)}")
        self._print(f"system: {json.dumps(conversation.system, ensure_ascii=False)}")
        self._print(f"parameters: {json.dumps(conversation.parameters, ensure_ascii=False)}")
        self._print(f"messages: {len(conversation.messages)}")

    def _toggle_verbose(self, _: str) -> None:
        self._session.printer.is_verbose = not self._session.printer.is_verbose
        self._print(f"verbose: {json.dumps(self._session.printer.is_verbose)}")

    def _help(self, _: str) -> None:
        for name, command in self._by_name.items():
            self._print(f"/{name} {command.takes}".ljust(20) + command.meaning)
        self._print("/quit".ljust(20) + "leave; Ctrl-D does it, too")
        self._print('Enter sends. Alt-Enter begins a new line, and so does Enter after """ until """ ends the message.')
        self._print("Tab completes commands and parameters. Ctrl-C stops an answer.")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)
