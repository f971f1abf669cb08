"""The items of an answer: a message, or calls of tools."""

from collections.abc import Iterable, Sequence
from typing import Any

from phi3_serve.api.responses.tools import Status
from phi3_serve.api.scored_tokens import scored
from phi3_serve.api.tools.answer import Call
from phi3_serve.core.completion import TextToken

Json = dict[str, Any]


def part(text: str, logprobs: Sequence[Json] = ()) -> Json:
    """The only part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def logprobs_of(tokens: Iterable[TextToken]) -> list[Json]:
    """The log-probabilities of the ``tokens`` that leave a trace in the text."""
    return [scored(token) for token in tokens if token.in_text]


def message_id(response_id: str) -> str:
    """The id of the message in a response."""
    return f"msg_{response_id.removeprefix('resp_')}"


def message(item_id: str, status: Status, parts: list[Json]) -> Json:
    """A message."""
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": parts}


def function_call(call: Call, status: Status) -> Json:
    """A call of a function."""
    ids = {"id": f"fc_{call.id}", "call_id": f"call_{call.id}"}
    return {**ids, "type": "function_call", "name": call.name, "arguments": call.arguments, "status": status}
