"""Conversations in which tools were called, as turns that every chat template knows.

Phi-3's chat template knows no tools. An assistant's calls are a part of what it says, and results are what a user says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phi3_serve.api.json_values import check_json
from phi3_serve.core.prompt import Message, Role
from phi3_serve.errors import InvalidRequest
from phi3_serve.tool_calls import calls_text


@dataclass(slots=True)
class _Turn:
    role: Role
    texts: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)  # names and arguments
    has_results: bool = False
    name: str | None = None
    reasoning_content: str | None = None

    def message(self) -> Message:
        """The turn as the template gets it."""
        parts = [*self.texts, *([calls_text(self.calls)] if self.calls else [])]
        text = "\n\n".join(filter(None, parts)) if self.calls or self.has_results else "".join(parts)
        return Message(self.role, text, self.name, self.reasoning_content)


class Turns:
    """Collects the turns of a conversation, in which each API tells calls and results in its own way."""

    def __init__(self) -> None:
        self._turns: list[_Turn] = []
        self._tools: dict[str, str] = {}  # the id of each call → the name of the tool
        self._unanswered: list[str] = []  # the tools of the calls that have no result yet

    @property
    def messages(self) -> tuple[Message, ...]:
        """All turns so far."""
        return tuple(turn.message() for turn in self._turns)

    @property
    def unanswered(self) -> str | None:
        """The tool of the first call that has no result yet."""
        return self._unanswered[0] if self._unanswered else None

    def say(self, role: Role, text: str, name: str | None = None, reasoning_content: str | None = None) -> None:
        """A turn begins with ``text``."""
        self._turns.append(_Turn(role, [text], name=name, reasoning_content=reasoning_content))

    def say_more(self, text: str) -> None:
        """The user goes on with ``text`` in the turn with results."""
        self._turns[-1].texts.append(text)

    def call(self, call_id: str | None, name: str, arguments: str | Mapping[str, Any], *, at: str) -> None:
        """The assistant calls a tool. ``at``: the field of the arguments, for errors."""
        if not self._turns or self._turns[-1].role != "assistant":
            self._turns.append(_Turn("assistant"))
        if not isinstance(arguments, str):
            check_json(arguments, at)
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._turns[-1].calls.append((name, arguments.strip() or "{}"))
        self._unanswered.append(name)
        if call_id is not None:
            self._tools[call_id] = name

    def result(self, call_id: str | None, text: str, *, at: str, name: str | None = None) -> None:
        """The result of the call ``call_id``, or of the tool ``name``. ``at``: the field of the id, for errors.

        Raises:
            InvalidRequest: neither is known.
        """
        name = self._tools.get(call_id or "", name or "")
        if not name:
            problem = "is missing" if call_id is None else f"is {call_id[:128]!r}"
            is_name = call_id is None and at.endswith("name")
            wanted = "the name of the tool" if is_name else "the id of a call in an earlier message"
            raise InvalidRequest(f"`{at}` {problem}; it must be {wanted}.", at)
        if not self._turns or not self._turns[-1].has_results:
            self._turns.append(_Turn("user", has_results=True))
        if name in self._unanswered:
            self._unanswered.remove(name)
        self._turns[-1].texts.append(f"Result of {name}:\n{text}")
