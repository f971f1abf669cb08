"""Bodies of ``/v1/responses`` as ``GenerationRequest``."""

from phi3_serve.api.decoding_mode import SAMPLED, with_decoding_mode
from phi3_serve.api.one_answer import refuse_more_than_one_text
from phi3_serve.api.responses.schema import InputMessage, ResponseInputTokensRequest, ResponsesRequest
from phi3_serve.core import Conversation, GenerationRequest, Message, RequestOptions
from phi3_serve.errors import InvalidRequest

_LOGPROBS = "message.output_text.logprobs"


def conversation(body: ResponsesRequest | ResponseInputTokensRequest) -> Conversation:
    """The instructions and the input."""
    instructions = [Message("system", body.instructions)] if body.instructions else []
    turns = [Message("user", body.input)] if isinstance(body.input, str) else map(_message, body.input)
    return Conversation((*instructions, *turns))


def generation_request(
    body: ResponsesRequest, *, model: str, request_id: str, options: RequestOptions
) -> GenerationRequest:
    """The request that the body describes.

    Raises:
        InvalidRequest: fields contradict each other, or ask for more than one text.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("`stream_options` needs `stream` to be true.", "stream_options")
    if _LOGPROBS in (body.include or ()):
        raise InvalidRequest(
            f"`include` has {_LOGPROBS}: log-probabilities are offered by /v1/chat/completions alone.", "include"
        )
    refuse_more_than_one_text(body.parameters, body.names_sent)
    return GenerationRequest(
        request_id=request_id,
        model=model,
        prompt=conversation(body),
        parameters=with_decoding_mode(body.parameters),
        api_defaults=SAMPLED,
        stream=bool(body.stream),
        options=options,
    )


def _message(item: InputMessage) -> Message:
    text = item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)
    return Message("system" if item.role == "developer" else item.role, text)
