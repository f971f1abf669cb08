"""Anthropic's plain answers, and the parts that a stream has, too."""

from dataclasses import dataclass
from typing import Any

from phi3_serve.api.tools.answer import Call, read
from phi3_serve.core.completion import Completion
from phi3_serve.core.event import Done
from phi3_serve.core.usage import Usage
from phi3_serve.tool_calls import ToolCalls

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageWriter:
    """Writes one message. ``calls``: those that it may have."""

    id: str
    model: str
    calls: ToolCalls | None = None

    def whole(self, done: Done) -> Json:
        """The plain answer."""
        completion = done.completions[0]
        answer = read(completion.text, self.calls, is_whole=not ran_out_of_tokens(completion))
        blocks = [text_block(answer.text)] if answer.text or not answer.calls else []
        blocks += [tool_use_block(call) for call in answer.calls]
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        end = ended(completion, has_calls=bool(answer.calls))
        return {**self.message(done.usage, end), "content": blocks, **warnings}

    def message(self, usage: Usage, end: Json) -> Json:
        """The message without its content."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            **end,
            "usage": usage_json(usage),
        }


def usage_json(usage: Usage) -> Json:
    """``usage`` as Anthropic writes it."""
    return {
        "input_tokens": usage.prompt_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,  # cached tokens are not told apart
        "output_tokens": usage.completion_tokens,
    }


def text_block(text: str) -> Json:
    """A block of text."""
    return {"type": "text", "text": text}


def tool_use_block(call: Call) -> Json:
    """A call of a tool."""
    return {"type": "tool_use", "id": f"toolu_{call.id}", "name": call.name, "input": call.input}


def ran_out_of_tokens(completion: Completion) -> bool:
    """Whether the answer has reached its length."""
    return completion.sequence.finish_reason == "length"


NOT_ENDED: Json = {"stop_reason": None, "stop_sequence": None}


def ended(completion: Completion, *, has_calls: bool) -> Json:
    """Why the answer ended."""
    if completion.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": completion.stop_string}
    reason = "max_tokens" if ran_out_of_tokens(completion) else "tool_use" if has_calls else "end_turn"
    return {"stop_reason": reason, "stop_sequence": None}
