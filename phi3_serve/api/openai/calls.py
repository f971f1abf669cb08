"""Calls of tools as OpenAI's chat writes them: ``tool_calls``, or ``function_call`` if ``functions`` were sent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phi3_serve.api.tools.answer import Answer, AnswerReader, Arguments, Call, CallBegins, Piece, Words, read
from phi3_serve.api.tools.offer import Offer
from phi3_serve.core.completion import Completion
from phi3_serve.core.generated_sequence import FinishReason

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How the calls of one answer are written."""

    offer: Offer | None = None
    is_legacy: bool = False

    def reader(self) -> AnswerReader:
        """Reads one answer of a stream."""
        return AnswerReader(None if self.offer is None else self.offer.calls)

    def answer(self, completion: Completion) -> Answer:
        """What a whole answer says."""
        calls = None if self.offer is None else self.offer.calls
        return read(completion.text, calls, is_whole=completion.sequence.finish_reason != "length")

    @property
    def opening(self) -> str | None:
        """The content that a stream begins with; null where calls may follow instead of a text."""
        return "" if self.offer is None else None

    def finish_reason(self, reason: FinishReason, *, has_calls: bool) -> str:
        """Why an answer ended.

        Where the client has named the tool, OpenAI says `stop` (https://github.com/vllm-project/vllm/pull/25054).
        """
        if reason == "length" or not has_calls or self.offer is None or self.offer.is_named:
            return reason
        return "function_call" if self.is_legacy else "tool_calls"

    def fields(self, calls: Sequence[Call]) -> Json:
        """The fields of a message that has ``calls``."""
        if not calls:
            return {}
        if self.is_legacy:
            (call,) = calls
            return {"function_call": {"name": call.name, "arguments": call.arguments}}
        return {"tool_calls": [_call(call) for call in calls]}

    def delta(self, piece: Piece) -> Json | None:
        """What ``piece`` adds to a message; None if it adds nothing."""
        match piece:
            case Words(text):
                return {"content": text}
            case CallBegins(index, call_id, name):
                call = _call(Call(call_id, name))
                return (
                    {"function_call": call["function"]}
                    if self.is_legacy
                    else {"tool_calls": [{"index": index, **call}]}
                )
            case Arguments(index, text):
                function = {"arguments": text}
                return (
                    {"function_call": function}
                    if self.is_legacy
                    else {"tool_calls": [{"index": index, "function": function}]}
                )
            case _:
                return None


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{call.id}", "type": "function", "function": function}
