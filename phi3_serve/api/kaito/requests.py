"""KAITO's request body as a ``GenerationRequest``."""

from phi3_serve.api.adapters import NamedModel
from phi3_serve.api.chat_messages import conversation
from phi3_serve.api.kaito.schema import ChatRequest
from phi3_serve.core.generation_request import GenerationRequest, RequestOptions
from phi3_serve.core.prompt import Conversation, RawPrompt
from phi3_serve.errors import InvalidRequest
from phi3_serve.parameter_defaults import CHAT_DEFAULTS
from phi3_serve.parameters import NONE_GIVEN

# KAITO's own texts
PROMPT_REQUIRED = "Text generation parameter prompt required"
MESSAGES_REQUIRED = "Conversational parameter messages required"

PROMPT_AND_MESSAGES = "`prompt` and `messages` exclude each other; send one of them."


def generation_request(
    body: ChatRequest, *, model: NamedModel, request_id: str, options: RequestOptions
) -> GenerationRequest:
    """The request that the body describes.

    Raises:
        InvalidRequest: neither or both of prompt and messages, a result belongs to no call, or an adapter is doubled.
    """
    return GenerationRequest(
        request_id=request_id,
        model=model.model,
        adapters=model.adapters(body.adapters),
        prompt=_prompt(body),
        parameters=body.parameters,
        api_defaults=NONE_GIVEN if body.has_null_kwargs else CHAT_DEFAULTS,
        stream=body.stream,
        clean_up_tokenization_spaces=body.clean_up_tokenization_spaces,
        truncate_prompt=body.handle_long_generation == "hole",
        options=options,
    )


def _prompt(body: ChatRequest) -> RawPrompt | Conversation:
    if body.prompt and body.messages:
        raise InvalidRequest(PROMPT_AND_MESSAGES, "messages")
    if body.messages:
        return conversation(body.messages)
    if body.messages is not None and not body.prompt:
        raise InvalidRequest(MESSAGES_REQUIRED, "messages")
    if not body.prompt:
        raise InvalidRequest(PROMPT_REQUIRED, "prompt")
    return RawPrompt(body.prompt, body.prefix or "")
