"""A conversation, and the settings of its next request."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from phi3_serve.errors import Phi3ServeError, did_you_mean
from phi3_serve.parameters import NAMES


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the settings of the next request."""

    model: str
    system: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # generate parameters by name
    messages: list[dict[str, str]] = field(default_factory=list)

    def set(self, name: str, value: str) -> None:
        """Set the generate parameter ``name`` to ``value``, which is JSON, or a text without quotes.

        Raises:
            Phi3ServeError: there is no such parameter.
        """
        require_parameter(name)
        try:
            self.parameters[name] = json.loads(value)
        except ValueError:
            self.parameters[name] = value

    def unset(self, name: str) -> None:
        """Leave the generate parameter ``name`` to the server.

        Raises:
            Phi3ServeError: there is no such parameter.
        """
        require_parameter(name)
        self.parameters.pop(name, None)

    def body(self) -> dict[str, Any]:
        """The body of the request to ``/v1/chat/completions`` for the next answer, as a stream."""
        return {**self.as_request(), "stream": True, "stream_options": {"include_usage": True}}

    def as_request(self) -> dict[str, Any]:
        """Everything that the conversation is, as the body of a request to ``/v1/chat/completions``."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"model": self.model, "messages": [*system, *self.messages], "generate_kwargs": self.parameters}

    def replace_by(self, body: Mapping[str, Any]) -> None:
        """Become the conversation that ``as_request`` gave as ``body``."""
        messages = [dict(message) for message in body["messages"]]
        self.system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
        self.model, self.messages, self.parameters = body["model"], messages, dict(body["generate_kwargs"])


def require_parameter(name: str) -> None:
    """Phi3ServeError if ``name`` is not a generate parameter."""
    if name not in NAMES:
        raise Phi3ServeError(f"`{name}` is not a generate parameter{did_you_mean(name, NAMES)}")
