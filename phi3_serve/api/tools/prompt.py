"""The offer of tools, as the model reads it in the system message."""

import json
from collections.abc import Sequence

from phi3_serve.api.tools.offer import Offer, Tool
from phi3_serve.core.prompt import Conversation, Message

_EXAMPLE = '[{"name": "NAME", "arguments": {...}}]'
_FORCED = f"Answer with a JSON list of calls of these tools, and nothing else: {_EXAMPLE}"
_FORCED_ONE = f"Answer with one call of a tool as JSON, and nothing else: {_EXAMPLE}"
_AUTO = (
    f"If a tool helps, answer with a JSON list of calls, and nothing else: {_EXAMPLE}\n"
    "Then you get the results. If no tool helps, answer in plain words."
)


def with_offer(messages: Sequence[Message], offer: Offer | None) -> Conversation:
    """The conversation of ``messages``, in which the system message offers the tools."""
    if offer is None:
        return Conversation(tuple(messages))
    text = _offer_text(offer)
    if messages and messages[0].role == "system":
        first, *others = messages
        system = Message("system", f"{first.content}\n\n{text}", first.name)
    else:
        system, others = Message("system", text), list(messages)
    return Conversation((system, *others), tools_text=text)


def _offer_text(offer: Offer) -> str:
    how = _AUTO
    if offer.calls.is_forced:
        how = _FORCED_ONE if offer.calls.max_calls == 1 else _FORCED
    return "\n".join(["You can call these tools:", *map(_described, offer.tools), how])


def _described(tool: Tool) -> str:
    about = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return json.dumps({name: value for name, value in about.items() if value is not None}, ensure_ascii=False)
