"""A conversation, and the settings of its next request."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from phi3_serve.errors import Phi3ServeError, did_you_mean
from phi3_serve.parameters import NAMES, GenerationParameters


@dataclass(slots=True)
class Conversation:
    """The messages so far, and the settings of the next request."""

    model: str
    system: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # generate parameters by name
    messages: list[dict[str, str]] = field(default_factory=list)

    def set(self, name: str, value: str) -> None:
        """Set the generate parameter ``name`` to ``value``, which is JSON, or a text without quotes.

        JSON of a type that the parameter does not have is a text if it has this type: ``4`` is a stop string.

        Raises:
            Phi3ServeError: there is no such parameter.
        """
        require_parameter(name)
        try:
            given = json.loads(value)
        except ValueError:
            given = value
        types = _types_of(name)
        self.parameters[name] = value if str in types and type(given) not in types else given

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


def _types_of(name: str) -> list[Any]:
    """The types of the parameter's values; a literal text, such as "never", is none of them."""
    return [get_origin(hint) or hint for hint in get_args(get_type_hints(GenerationParameters)[name])]


def require_parameter(name: str) -> None:
    """Phi3ServeError if ``name`` is not a generate parameter."""
    if name not in NAMES:
        raise Phi3ServeError(f"`{name}` is not a generate parameter{did_you_mean(name, NAMES)}")
