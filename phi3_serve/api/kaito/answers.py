"""KAITO's answers: the plain JSON body, and the same as server-sent events."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from phi3_serve.api import sse
from phi3_serve.api.kaito.errors import KAITO
from phi3_serve.api.kaito.schema import ChatRequest
from phi3_serve.api.service import INCOMPLETE_ANSWER, Events
from phi3_serve.core.completion import PromptText
from phi3_serve.core.event import Delta, Done
from phi3_serve.core.generated_sequence import GeneratedSequence
from phi3_serve.core.generation_request import GenerationRequest
from phi3_serve.errors import EngineFailure, Phi3ServeError
from phi3_serve.parameters import GenerationParameters


def chat_response(done: Done, body: ChatRequest, request: GenerationRequest) -> dict[str, Any]:
    """The JSON body, in the shape of ``schema.ChatResponse``."""
    texts = [_prompt_in_result(body) + completion.text for completion in done.completions]
    response: dict[str, Any] = {"Result": "".join(texts)}
    if len(texts) > 1:
        response["Results"] = texts
    if _wants_details(request.parameters):
        response["Details"] = {
            "sequences": [_details(completion.sequence) for completion in done.completions],
            **({} if done.prompt is None else {"prompt": _details_of_prompt(done.prompt)}),
            "usage": {
                "prompt_tokens": done.usage.prompt_tokens,
                "completion_tokens": done.usage.completion_tokens,
            },
        }
    ignored = [f"`{name[:64]}` is not a field; it had no effect." for name in body.unknown_fields]
    if warnings := [*done.warnings, *ignored]:
        response["warnings"] = warnings
    return response


async def chat_events(events: Events, body: ChatRequest, request: GenerationRequest) -> AsyncGenerator[bytes, None]:
    """Deltas, then the body of the plain answer. The deltas joined are its Result."""
    prompt = _prompt_in_result(body)
    has_begun = has_deltas = False
    async with aclosing(events):
        async for event in events:
            if prompt and not has_begun:
                yield sse.event({"Delta": prompt})
            has_begun = True
            if isinstance(event, Delta):
                has_deltas = True
                yield sse.event({"Delta": event.text})
                continue
            response = chat_response(event, body, request)
            if not has_deltas and (text := response["Result"][len(prompt) :]):  # beams give no deltas
                yield sse.event({"Delta": text})
            yield sse.event(response)
            yield sse.END
            return
    raise EngineFailure(INCOMPLETE_ANSWER)


def error_event(error: Phi3ServeError) -> bytes:
    """The event that ends a stream with ``error``."""
    return sse.event(KAITO.body(error), name="error")


def _prompt_in_result(body: ChatRequest) -> str:
    """What Result holds before the generated text."""
    return body.prompt if body.return_full_text and body.prompt else ""


def _wants_details(parameters: GenerationParameters) -> bool:
    logprobs = (parameters.top_logprobs, parameters.prompt_logprobs)
    return bool(parameters.return_dict_in_generate or parameters.output_scores or logprobs != (None, None))


def _details_of_prompt(prompt: PromptText) -> dict[str, Any]:
    """Lists with one entry for each token; the first token has no log-probability."""
    return {
        "token_ids": [token.token_id for token in prompt.tokens],
        "logprobs": [token.logprob for token in prompt.tokens],
        "ranks": [token.rank for token in prompt.tokens],
        "top_logprobs": [[(one.token_id, one.logprob) for one in token.likeliest] for token in prompt.tokens],
    }


def _details(sequence: GeneratedSequence) -> dict[str, Any]:
    details: dict[str, Any] = {"token_ids": sequence.token_ids, "finish_reason": sequence.finish_reason}
    if sequence.scores is not None:
        # The score of a forced token can be minus infinity, which JSON cannot express.
        details["scores"] = [score if math.isfinite(score) else None for score in sequence.scores]
    if sequence.logprobs is not None:
        details["logprobs"] = [token.chosen for token in sequence.logprobs]
        details["top_logprobs"] = [token.likeliest for token in sequence.logprobs]
    return details
