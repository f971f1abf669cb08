"""The fields of an answer that repeat the settings of its request."""

from typing import Any

from pydantic import BaseModel

from phi3_serve.api.decoding_mode import SAMPLED
from phi3_serve.api.responses.schema import ResponsesRequest
from phi3_serve.core.generation_request import GenerationRequest


def settings_of(body: ResponsesRequest, request: GenerationRequest) -> dict[str, Any]:
    """What the client has asked for, and what applies where it asked for nothing."""
    parameters = request.parameters.over(SAMPLED)
    text_format = (body.text and body.text.format) or {"type": "text"}
    temperature = 0.0 if parameters.do_sample is False else parameters.temperature
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": parameters.max_new_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": temperature,
        "text": {"format": text_format, "verbosity": "medium"},
        "tool_choice": _as_sent(body.tool_choice) or "auto",
        "tools": [_as_sent(tool) for tool in body.tools or ()],
        "top_logprobs": parameters.top_logprobs or 0,
        "top_p": parameters.top_p,
        "truncation": "disabled",
    }


def _as_sent(value: Any) -> Any:
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
