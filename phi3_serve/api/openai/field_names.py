"""Errors that name a field as the client sent it. The engine knows each value by the name of its generate parameter."""

import re
from collections.abc import AsyncGenerator
from typing import TypeVar

from phi3_serve.api.openai.schema import ChatCompletionRequest, RequestBody
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameters import GenerationParameters

T = TypeVar("T")

_QUOTED_NAME = re.compile(r"`(\w+)`")


async def with_field_names(events: AsyncGenerator[T, None], body: RequestBody) -> AsyncGenerator[T, None]:
    """``events`` as they are; an InvalidRequest among them names the fields of ``body``."""
    try:
        async for event in events:
            yield event
    except InvalidRequest as error:
        raise named_by_fields(error, body) from error
    finally:
        await events.aclose()


def named_by_fields(error: InvalidRequest, body: RequestBody) -> InvalidRequest:
    """``error`` with the names of the fields that ``body`` has. What the client has not sent is no ``param``."""
    in_kwargs = (body.generate_kwargs or GenerationParameters()).given()
    fields = {name: field for name, field in _fields_of_parameters(body).items() if name not in in_kwargs}
    message = _QUOTED_NAME.sub(lambda found: f"`{fields.get(found[1]) or found[1]}`", error.message)
    param = fields.get(error.param or "") or error.param
    return InvalidRequest(message, param if param in body.model_fields_set or param in in_kwargs else None)


def _fields_of_parameters(body: RequestBody) -> dict[str, str | None]:
    """Generate parameter → the field of ``body`` that sets it, if the client has sent one."""
    length = _first_sent(body, "max_completion_tokens", "max_tokens")
    return {
        "sequence_bias": _first_sent(body, "logit_bias"),
        "stop_strings": _first_sent(body, "stop"),
        "top_logprobs": _first_sent(body, "top_logprobs", "logprobs"),
        "num_return_sequences": _first_sent(body, "n"),
        "max_new_tokens": length,
        "max_length": length,
        "prompt": "messages" if isinstance(body, ChatCompletionRequest) else None,
    }


def _first_sent(body: RequestBody, *fields: str) -> str | None:
    return next((field for field in fields if getattr(body, field, None) is not None), None)
