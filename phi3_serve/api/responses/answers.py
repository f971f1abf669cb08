"""The plain answers of ``/v1/responses``, and the parts that a stream has, too."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from phi3_serve.api.responses.items import function_call, logprobs_of, message, message_id, part
from phi3_serve.api.responses.tools import Status
from phi3_serve.api.tools.answer import read
from phi3_serve.core.event import Done
from phi3_serve.core.usage import Usage
from phi3_serve.errors import InvalidRequest, Overloaded, Phi3ServeError
from phi3_serve.tool_calls import ToolCalls

Json = dict[str, Any]


@dataclass(kw_only=True)
class ResponseWriter:
    """Writes one response. ``settings``: the fields that repeat the request. ``calls``: those that it may have."""

    id: str
    model: str
    settings: Mapping[str, Any]
    calls: ToolCalls | None = None
    created_at: int = field(default_factory=lambda: int(time.time()))

    def whole(self, done: Done) -> Json:
        """The plain answer."""
        return self.ended(done, self._output(done))

    def ended(self, done: Done, output: Iterable[Json]) -> Json:
        """The response at its end, with the items of its ``output``."""
        is_cut = ran_out_of_tokens(done)
        warnings = {"warnings": list(done.warnings)} if done.warnings else {}
        return {
            **self.response("incomplete" if is_cut else "completed", output=output, usage=_usage(done.usage)),
            "completed_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            **warnings,
        }

    def failed(self, error: Phi3ServeError) -> Json:
        """The response that an error has ended."""
        return self.response("failed", error={"code": _code(error), "message": error.message})

    def response(
        self, status: str, *, output: Iterable[Json] = (), usage: Json | None = None, error: Json | None = None
    ) -> Json:
        """The response with this ``status``."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": error,
            "incomplete_details": None,
            "model": self.model,
            "output": list(output),
            "usage": usage,
            **self.settings,
        }

    def _output(self, done: Done) -> list[Json]:
        is_cut = ran_out_of_tokens(done)
        answer = read(done.completions[0].text, self.calls, is_whole=not is_cut)
        calls = [function_call(call, "completed" if call.is_complete else "incomplete") for call in answer.calls]
        if calls and not answer.text:
            return calls
        status: Status = "incomplete" if is_cut else "completed"
        logprobs = [] if calls else logprobs_of(done.completions[0].tokens)
        return [message(message_id(self.id), status, [part(answer.text, logprobs)]), *calls]


def ran_out_of_tokens(done: Done) -> bool:
    """Whether the answer has reached its length."""
    return done.completions[0].sequence.finish_reason == "length"


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _code(error: Phi3ServeError) -> str:
    """OpenAI's code of a failed response."""
    if isinstance(error, InvalidRequest):
        return "invalid_prompt"
    return "rate_limit_exceeded" if isinstance(error, Overloaded) else "server_error"
